"""Measurements: each is a function that returns a frozen result with its cost."""
