"""`circuit-scout setup` and `circuit-scout new`: clients' configurations, skills, study folders.

Nothing here loads a model or imports torch.
"""
