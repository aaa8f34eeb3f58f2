"""The nnsight backend: it traces a Hugging Face module and edits it at known module paths.

Importing nnsight changes the whole process: it adds a method `save` to every object, and replaces
`Tensor.backward`. So it is imported by `backend.import_nnsight` only, when a model asks for it.
"""
