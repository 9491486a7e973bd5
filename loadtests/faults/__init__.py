"""Faults under load: a cluster of several nodes on this machine, one fault at a time, and what became of every request."""
