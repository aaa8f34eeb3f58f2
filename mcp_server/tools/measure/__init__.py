"""Tools that measure a model on a prompt or a task."""
