"""The traced backend: a Hugging Face module that nnsight traces, read and edited at the module paths of its layout."""
