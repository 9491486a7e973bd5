"""Bytes to values and back, for the protocols that clients already speak. Pure: no clock, no I/O, no event loop."""
