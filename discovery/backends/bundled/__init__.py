"""The bundled model's files: see MODEL_CARD.md beside this one."""
