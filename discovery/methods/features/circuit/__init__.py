"""Features beside the heads and MLPs of a circuit record.

`feature_circuit.add_features` is the entry point. `exchange` finds and verifies features, `edges`
measures their edges, `candidates` decides which features hold, `split` holds the pairs that a
number comes from, and `record` writes the results into the circuit record.
"""
