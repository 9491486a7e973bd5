"""`cascade top` against a server of recorded figures: what it shows, prints for machines, and says without one."""

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cascade.cli import app
from cascade.cli.top_view import panel
from cascade.serving.environment import free_port
from cascade.wire.live import Audited, ClassLive, LiveStatistics, StageLive
from cascade.wire.status import RouterReading, status_document
from tests.answering import Answering, Given


def figures(model: str = "fashion", **live: Any) -> dict[str, Any]:
    stages = {
        "small": StageLive(0.0, 0.75, 9000.0, 1, 0, 1200.0, 5.2, 0.0002, 0.0004),
        "large": StageLive(0.0875, 0.25, 310.0, 4, 48, 98.0, 15.9, 0.051, 0.112),
    }
    facts = {
        "rate": 1234.0,
        "stages": stages,
        "degraded": 0.104,
        "shed_per_s": 2.5,
        "answered_per_s": 1231.0,
        "cost": 1.21e6,
        "certified_loss": 0.0142,
        "predicted_accuracy": 0.912,
        "audited_accuracy": Audited(0.907, 0.006, 312),
        "lag_s": 0.0012,
        "plan_age_s": 0.3,
    }
    reading = RouterReading("abc", "4f2a", LiveStatistics(**(facts | live)))
    return status_document([reading], model=model, version="1", server="0", cost_unit="MAC", routers=2)


class Server(Answering):
    """Serves documents by path."""

    def __init__(self) -> None:
        self.documents: dict[str, tuple[int, Any]] = {"/status/figures": (200, figures())}
        super().__init__(self._give)

    def _give(self, path: str) -> Given:
        status, document = self.documents.get(path, (404, {}))
        body = json.dumps(document).encode()
        return status, [("content-type", "application/json"), ("content-length", str(len(body)))], body


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


def top(*arguments: str):
    return CliRunner().invoke(app, ["top", *arguments], env={"COLUMNS": "140"})


def test_once_shows_the_figures(server):
    result = top(server.url, "--once")
    assert result.exit_code == 0, result.output
    words = " ".join(result.output.split())
    for expected in (
        "fashion 1",
        "1,234/s 1,231/s 2.5/s 10.4 %",
        "91.2 % 90.7 % ± 0.6 1.4 points 1.21e+06 MAC",
        "small 75.0 % 0.000 0 1 13.3 % 9,000/s 5.2 0.2 ms 0.4 ms",
        "large 25.0 % 0.087 48 4 31.6 % 310/s 15.9 51.0 ms 112.0 ms",
        "of the routers that answered, not of all",
        "1 of 2 routers · 4f2a",
    ):
        assert expected in words, words


def test_what_is_not_known_is_a_dash_and_what_is_out_is_said(server):
    stages = {"small": StageLive(0.0, None, 9000.0, 1, 0), "large": StageLive(None, None, 0.0, 0, 0)}
    live = {"stages": stages, "degraded": None, "cost": None, "certified_loss": None, "audited_accuracy": None}
    server.documents["/status/figures"] = 200, figures(**live)
    result = top(server.url, "--once")
    assert result.exit_code == 0, result.output
    assert "no answers in the last ten seconds" in result.output
    assert "no replica of large: rows go past" in result.output
    assert "out" in result.output


def test_classes_are_shown_where_there_are_some(server):
    server.documents["/status/figures"] = (
        200,
        figures(classes={1: ClassLive(800.0, 0.02, 0.0), 2: ClassLive(431.0, 0.26, 1.5)}),
    )
    words = " ".join(top(server.url, "--once").output.split())
    assert "1 800/s 2.0 % 0/s" in words
    assert "2 431/s 26.0 % 1.5/s" in words


def test_json_is_the_documents_with_where_they_are_from(server):
    result = top(server.url, "--json")
    assert result.exit_code == 0, result.output
    (document,) = json.loads(result.output)
    assert document == {"url": server.url, **figures()}


def test_of_a_proxy_all_ladders_are_shown(server):
    server.documents = {
        "/-/routes": (200, {"/fashion": "fashion", "/sentiment": "sentiment", "/other": "other"}),
        "/fashion/status/figures": (200, figures()),
        "/sentiment/status/figures": (200, figures("sentiment")),
    }
    documents = json.loads(top(server.url, "--json").output)
    assert [document["model"] for document in documents] == ["fashion", "sentiment"]
    assert documents[1]["url"] == f"{server.url}/sentiment"


def test_several_urls_are_watched_together(server):
    documents = json.loads(top(server.url, f"{server.url}/", "--json").output)
    assert len(documents) == 2


@pytest.mark.parametrize(
    ("documents", "words"),
    [
        ({}, "is no cascade"),
        ({"/status/figures": (503, {})}, "the server is starting"),
        ({"/-/routes": (200, {"/other": "other"})}, "none of its applications (/other) is a cascade"),
    ],
)
def test_a_server_without_figures_is_named_and_the_exit_code_is_2(server, documents, words):
    server.documents = documents
    result = top(server.url, "--once")
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())


def test_nobody_there_is_said_in_one_sentence():
    result = top(f"127.0.0.1:{free_port()}", "--once")
    assert result.exit_code == 2
    assert "Not reachable" in result.output
    assert "Traceback" not in result.output


def test_nothing_is_cut_off_in_a_terminal_of_80_columns() -> None:
    out = io.StringIO()
    Console(file=out, width=80).print(panel("http://127.0.0.1:8000", figures(), "", 0.0))
    assert "…" not in out.getvalue()
    assert "90.7 % ± 0.6" in out.getvalue()
