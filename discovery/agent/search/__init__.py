"""The search for a circuit on discovery pairs; `select.search_circuit` is its only entry point."""
