"""Tools that answer one question about the parts of a model: the techniques."""
