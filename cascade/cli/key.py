"""Commands about the keys of a ladder: new, list, revoke. A key is shown once, when it is made, and kept nowhere."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from cascade.cli.console import console, errors, print_json, usage_errors
from cascade.errors import ConfigError
from cascade.keys import HINT_CHARS, ApiKey, KeyFile, KeyRing, hash_of, new_key
from cascade.spec import Ladder

SpecPath = Annotated[Path, typer.Argument(help="The ladder's cascade.yaml.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Most = Annotated[int | None, typer.Option(min=1, help="Requests that it may have under way; default: the spec's limit.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    keys = typer.Typer(name="key", no_args_is_help=True, help="API keys: make, list and revoke them.")
    keys.command()(new)
    keys.command("list")(list_)
    keys.command()(revoke)
    app.add_typer(keys)


def new(
    spec: SpecPath,
    name: Annotated[str, typer.Option(help="What to call it in lists.", show_default=False)],
    class_name: Annotated[
        str | None, typer.Option("--class", help="Class that its requests cannot exceed; default: the spec's default.")
    ] = None,
    tenant: Annotated[str, typer.Option(help="For whom its requests are.")] = "",
    admin: Annotated[bool, typer.Option("--admin", help="Let it read statistics and other things for operators.")] = False,
    max_under_way: Most = None,
    max_streams: Annotated[int | None, typer.Option(min=1, help="The same of streams.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and show it; only its hash is kept, so this is the one time that it can be seen."""
    with usage_errors():
        ladder, path = _keys_of(spec)
        key = new_key()
        try:
            made = ApiKey.model_validate(
                {
                    "name": name,
                    "sha256": hash_of(key),
                    "hint": key[:HINT_CHARS],
                    "class": class_name,
                    "tenant": tenant,
                    "admin": admin,
                    "max_under_way": max_under_way,
                    "max_streams": max_streams,
                    "created": datetime.now(UTC).date(),
                }
            )
        except ValueError as error:
            raise ConfigError(
                f"--name must be a short word and --tenant short printable ASCII, got {name!r}, {tenant!r}"
            ) from error
        file = (KeyFile.read(path) if path.exists() else KeyFile()).with_key(made)
        classes = {each.name: priority for priority, each in enumerate(ladder.spec.admission.all_classes, 1)}
        KeyRing(file, classes, ladder.spec.admission.default_priority)  # a class that there is not is refused here
        file.write(path)
    if as_json:
        print_json({"name": name, "key": key, "file": str(path)})
        return
    console.print(key, highlight=False, markup=False, soft_wrap=True)
    errors.print(f"{path} holds its hash; running routers take it within a second of seeing the file", highlight=False)


def list_(spec: SpecPath, as_json: AsJson = False) -> None:
    """Show what keys there are; not the keys, which nobody has but their owners."""
    with usage_errors():
        _, path = _keys_of(spec)
        file = KeyFile.read(path)
    shown = [key.model_dump(mode="json", by_alias=True, exclude={"sha256"}, exclude_none=True) for key in file.keys]
    if as_json:
        print_json({"file": str(path), "keys": shown})
        return
    table = Table(title=f"{len(shown)} keys in {escape(str(path))}", title_justify="left")
    columns = ("name", "hint", "class", "tenant", "admin", "max_under_way", "max_streams", "created")
    for column in columns:
        table.add_column(column)
    for key in shown:
        table.add_row(*(escape(str(key.get(column, "")) if key.get(column) is not False else "") for column in columns))
    console.print(table)


def revoke(spec: SpecPath, name: Annotated[str, typer.Argument(help="Name of the key.", show_default=False)]) -> None:
    """Take a key out of the file; running routers refuse it within a second of seeing the file."""
    with usage_errors():
        _, path = _keys_of(spec)
        KeyFile.read(path).without_key(name).write(path)
    console.print(f"revoked {name}", highlight=False, markup=False)


def _keys_of(spec: Path) -> tuple[Ladder, Path]:
    ladder = Ladder.read(spec)
    if ladder.spec.security is None:
        raise ConfigError(f"{spec} asks for no keys; add\n  security: {{keys: keys.json}}")
    return ladder, ladder.path(ladder.spec.security.keys)
