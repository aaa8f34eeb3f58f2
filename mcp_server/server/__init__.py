"""The server itself: tools, resources and prompts put together, and the transports that carry it."""
