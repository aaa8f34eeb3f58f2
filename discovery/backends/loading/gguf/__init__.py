"""GGUF files, the format of llama.cpp: finding them, reading their headers, converting them.

`files` finds a file and its parts, `header` reads what a file holds without its weights,
`configuration` asks transformers what the model is, and `convert` writes the dequantised weights
into the user's cache, from where they load like any Hugging Face directory.
"""
