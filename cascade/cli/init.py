"""`cascade init`: a folder with a ladder that works, to be replaced piece by piece. Writes text files, and runs nothing."""

import json
import re
import shlex
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from cascade.cli.console import console, usage_errors, writing
from cascade.errors import ConfigError
from cascade.spec import json_schema

FILES = ("cascade.yaml", "models.py", "train.py", "serve.yaml", "README.md")
"""What is written, each from the file of that name and ``.tmpl`` in the package."""
COMMANDS = (
    ("export PYTHONPATH=$PWD", "where the ladder's models.py is"),
    ("python train.py", "weights and labelled rows"),
    ("cascade profile cascade.yaml", "every network over the calibration rows: answers and times"),
    ("cascade calibrate cascade.yaml", "what confidence is worth, and what the dearer network would gain"),
    ("cascade check cascade.yaml", "whether all of it fits together"),
    ("cascade demo cascade.yaml", "serve it, send the test rows, stop"),
    ("cascade serve cascade.yaml", "serve it until Ctrl-C"),
)
"""What to run next, in order, and what it is for."""


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(init)


def init(
    folder: Annotated[Path, typer.Argument(help="Where to write it; made if it is not there.", show_default=False)],
    name: Annotated[str | None, typer.Option(help="Name of the ladder; that of the folder by default.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over files that are there.")] = False,
) -> None:
    """Write the skeleton of a ladder: a spec, two tiny networks, what trains them, a Serve config file."""
    with usage_errors():
        name = name or re.sub(r"[^A-Za-z0-9_-]+", "-", folder.resolve().name).strip("-_") or "ladder"
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", name):
            raise ConfigError(f"--name: letters, digits, _ and -, at most 63, the first a letter or digit, got {name!r}")
        texts = {file: skeleton(file, name) for file in FILES}
        texts["cascade.schema.json"] = json.dumps(json_schema(), indent=2) + "\n"
        there = [file for file in texts if (folder / file).exists()]
        if there and not force:
            raise ConfigError(
                f"{folder} has {', '.join(there)} already; choose another folder, or --force to write over them"
            )
        for file, text in texts.items():
            with writing(folder / file):
                (folder / file).write_text(text, encoding="utf-8")
    console.print(f"wrote {', '.join(texts)} in {folder}", highlight=False, soft_wrap=True)
    console.print("next:")
    for command, purpose in ((f"cd {shlex.quote(str(folder))}", ""), *COMMANDS):
        console.print(f"  {command}" + (f"  [dim]# {purpose}[/dim]" if purpose else ""), highlight=False, soft_wrap=True)


def skeleton(file: str, name: str) -> str:
    """The text of one of `FILES` for a ladder of that name."""
    text = files("cascade.cli").joinpath("skeleton", f"{file}.tmpl").read_text(encoding="utf-8")
    width = max(len(command) for command, _ in COMMANDS)
    commands = "\n".join(f"{command:<{width}}  # {purpose}" for command, purpose in COMMANDS)
    return text.replace("{{name}}", name).replace("{{commands}}", commands)
