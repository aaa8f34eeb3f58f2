"""Tools on the features of a sparse autoencoder."""
