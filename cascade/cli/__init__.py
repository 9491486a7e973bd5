"""The command line: check, profile and calibrate a ladder, serve it, show it.

Commands parse arguments, call the floors below and show what they return; nothing is computed here. Exit codes: 0 done,
1 a verdict failed, 2 the operator's files or arguments are wrong.
"""

import typer

from cascade.cli import calibrate, certify, frontier, ladder, offline, online, plan, report, simulate

app = typer.Typer(
    name="cascade",
    help="A model server that gets less accurate instead of slower or unavailable when traffic spikes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
offline.register(app)
calibrate.register(app)
certify.register(app)
frontier.register(app)
ladder.register(app)
plan.register(app)
report.register(app)
simulate.register(app)
online.register(app)
