"""What a run keeps in its folder: settings, state, measured sets; and what if it is damaged."""
