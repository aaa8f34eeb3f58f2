"""The search for a circuit on discovery pairs; `search_circuit` is its only entry point."""
