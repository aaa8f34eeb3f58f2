"""Where features fire: the documents that are read, the examples that are kept, and what is shown of them."""
