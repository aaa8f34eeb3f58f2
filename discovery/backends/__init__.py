"""Engines that run models, behind one contract; and loading, which makes them prove themselves."""
