"""Activation patching: sweeps over sites, single nodes, and edges by path patching."""
