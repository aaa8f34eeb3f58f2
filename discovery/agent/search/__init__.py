"""The search for a circuit on discovery pairs: propose a set, mend it, shrink it, and compare it with its rivals."""
