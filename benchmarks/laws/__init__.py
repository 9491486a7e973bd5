"""Laws of load control on a synthetic ladder: the value-ordered queue beside the usual ones."""
