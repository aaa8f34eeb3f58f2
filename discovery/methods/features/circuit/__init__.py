"""Features in a circuit: candidates, their effects by exchange, their edges, and their entries in the record."""
