"""Circuit Scout's upper floor: the protocol. Thin, no mathematics; it imports `discovery`, never the other way round."""
