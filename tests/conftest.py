"""Shared by all tests. Ray reads its environment at import, so that is set before any test module is loaded."""

import os

from cascade.serving.environment import apply_local

apply_local(os.environ)
