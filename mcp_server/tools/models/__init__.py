"""Tools that load, list and unload models."""
