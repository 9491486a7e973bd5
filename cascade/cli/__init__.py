"""The command line: begin, train, check, profile and calibrate a ladder, know what it will do, serve and watch it.

Commands parse arguments, call the floors below and show what they return; nothing is computed here. Exit codes: 0 done,
1 a verdict failed, 2 the operator's files or arguments are wrong.

A command's module is imported when the command is called: each brings libraries that the others need not wait for.
"""

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

MODULES = {
    "init": "init",
    "train-exits": "train_exits",
    "check": "offline",
    "profile": "offline",
    "calibrate": "calibrate",
    "certify": "certify",
    "frontier": "frontier",
    "ladder": "ladder",
    "compress": "compress",
    "plan": "plan",
    "simulate": "simulate",
    "report": "report",
    "serve": "online",
    "deploy": "deploy",
    "demo": "online",
    "explain": "explain",
    "top": "top",
    "key": "key",
    "schema": "offline",
}
"""Commands in the order of their use, and the module that registers each."""


class Commands(TyperGroup):
    """The commands of `MODULES`, each imported when it is asked for.

    Contexts and commands are click's, which typer brings along or imports, depending on its version; hence no types.
    """

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """Names, in order."""
        return list(MODULES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        """The command of that name, None if there is none."""
        if cmd_name not in MODULES:
            return None
        part = typer.Typer()
        part.callback()(lambda: None)  # a Typer of one command would else be that command
        import_module(f"cascade.cli.{MODULES[cmd_name]}").register(part)
        return get_group(part).commands[cmd_name]


app = typer.Typer(
    name="cascade",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def cascade() -> None:
    """A model server that gets less accurate instead of slower or unavailable when traffic spikes."""
