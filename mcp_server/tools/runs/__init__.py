"""Tools that list runs, follow or stop them, and show the circuits that they found."""
