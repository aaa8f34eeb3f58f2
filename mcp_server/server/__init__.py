"""The server itself: tools, resources and prompts together, and the transports that carry it."""
