"""How the bundled model is made: corpus, tokenizer, training, and the measurements for its card."""
