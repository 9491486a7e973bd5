"""`cascade explain`: why a request was answered as it was, as its router tells it. Knows HTTP and that document, not Ray."""

import urllib.error
import urllib.request
from typing import Annotated, Any
from urllib.parse import quote

import orjson
import typer
from rich.table import Table

from cascade.cli.console import console, print_json, usage_errors
from cascade.errors import CascadeError, ConfigError

TIMEOUT_S = 10.0
Document = dict[str, Any]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(explain)


def explain(
    url: Annotated[str, typer.Argument(help="The server, such as http://127.0.0.1:8000.", show_default=False)],
    request_id: Annotated[
        str | None,
        typer.Argument(
            help="X-Request-Id of an answer, or the id of the message; without it, which are kept.", show_default=False
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Name of the ladder; not needed where the server has one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the document itself.")] = False,
) -> None:
    """Say why a request was answered by the stage that answered it."""
    with usage_errors():
        base = url.rstrip("/")
        name = model or _only_model(base)
        path = f"/v2/models/{quote(name, safe='')}/explain"
        document = _get(base, path if request_id is None else f"{path}/{quote(request_id, safe='')}")
    if as_json:
        print_json(document)
    elif request_id is None:
        _print_latest(document)
    else:
        _print(document)


def _only_model(base: str) -> str:
    models = _get(base, "/v2/models")["models"]
    if len(models) != 1:
        raise ConfigError(f"{base} serves {', '.join(models)}: say which by --model")
    return str(models[0])


def _get(base: str, path: str) -> Document:
    if not base.startswith(("http://", "https://")):
        raise ConfigError(f"expected a URL such as http://127.0.0.1:8000, got {base!r}")
    try:
        with urllib.request.urlopen(base + path, timeout=TIMEOUT_S) as response:
            content = response.read()
    except urllib.error.HTTPError as error:
        raise CascadeError(_told(error.read()) or f"{base}{path} answered {error.code}") from error
    except OSError as error:
        raise ConfigError(f"{base} does not answer: {getattr(error, 'reason', error)}") from error
    document: Document = orjson.loads(content)
    return document


def _told(body: bytes) -> str:
    try:
        return str(orjson.loads(body)["error"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return ""


def _print_latest(document: Document) -> None:
    if not document["requests"]:
        console.print("none is kept: send a request with the header Cascade-Explain: ?1")
    for each in document["requests"]:
        console.print(f"{each['id']}  {each['text']}", highlight=False, markup=False, soft_wrap=True)


def _print(document: Document) -> None:
    facts = [f"class {document['class']['name']}", f"deadline {document['deadline_s']:.3g} s"]
    if document["max_cost"] is not None:
        facts.append(f"at most {document['max_cost']:g} cost")
    if document["min_confidence"] is not None:
        facts.append(f"content with {document['min_confidence']:g}")
    if document["load"] is not None:
        facts.append(f"load {document['load']:.2f}x")
    if document["certified_loss"] is not None:
        facts.append(f"certified loss {document['certified_loss']:.4f}")
    console.print(f"{document['id']}: {', '.join(facts)}", highlight=False, markup=False, soft_wrap=True)
    several = document["rows_of_request"] > 1
    for row in document["rows"]:
        number = f"row {row['row']}: " if several else ""
        console.print(f"{number}{row['text']}", highlight=False, markup=False, soft_wrap=True)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for column in ("stage", "waited", "ran", "batch", "p(right)", "then", "worth", "price", "base", "slack"):
            table.add_column(column, justify="left" if column in ("stage", "then") else "right")
        for visit in row["visits"]:
            table.add_row(*_cells(visit))
        console.print(table)
    if several and document["rows_of_request"] > len(document["rows"]):
        console.print(f"the first {len(document['rows'])} of {document['rows_of_request']} rows")


def _cells(visit: Document) -> list[str]:
    onward = visit["onward"]
    before = [
        visit["stage"],
        f"{1e3 * visit['queued_s']:.1f} ms",
        f"{1e3 * visit['run_s']:.1f} ms",
        str(visit["batch_rows"]) + (" again" if visit["attempt"] > 1 else ""),
        f"{visit['p_correct']:.3f}",
    ]
    if onward is None:
        return [*before, visit["decision"], "", "", "", f"{visit['slack_s']:.3f} s"]
    then = f"to {onward['stage']}" if visit["decision"] == "went on" else f"{visit['decision']}, not {onward['stage']}"
    price = f"{onward['price']:.4f}" + (" floor" if onward["protected"] else "")
    return [*before, then, f"{onward['value']:.4f}", price, f"{onward['base_price']:.4f}", f"{visit['slack_s']:.3f} s"]
