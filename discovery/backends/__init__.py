"""Backends: libraries that run models, behind one contract, and the loading of models.

`base` is the contract. `transformerlens`, `nnsight` and `remote` implement it. `loading` builds a
backend from a model's files and checks it against the plain module; `hardware` knows the memory and
the devices of this machine.
"""
