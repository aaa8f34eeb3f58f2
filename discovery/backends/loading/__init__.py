"""Where a model comes from: Hugging Face directories and hub names, the native format, and the bundled model."""
