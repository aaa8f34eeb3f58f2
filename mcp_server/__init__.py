"""The MCP server of Circuit Scout: typed tools over `discovery`, which never imports it."""
