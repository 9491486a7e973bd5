"""The command line: check, profile and calibrate a ladder, serve it, show it. Exit codes: 0 done, 1 a verdict failed, 2 usage.

Commands parse arguments, call one function of the floors below and show what it returns; nothing is computed here.
"""

import typer

from cascade.cli import offline, online

app = typer.Typer(
    name="cascade",
    help="A model server that gets less accurate instead of slower or unavailable when traffic spikes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
offline.register(app)
online.register(app)
