"""``python -m cascade.cli``: the same as the command ``cascade``."""

from cascade.cli import app

app()
