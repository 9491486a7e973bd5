"""cascade: a model server that gets less accurate instead of slower or unavailable when traffic spikes."""

__version__ = "0.1.0"
