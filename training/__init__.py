"""How the bundled model and its sparse autoencoder are made.

The package holds the corpus, the tokenizer, the training, and the measurements for the model's
card.
"""
