"""Tools that read, follow and cancel runs."""
