"""`cascade explain` against a server that holds two explanations: what it prints, and what it says when there is nothing."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from typer.testing import CliRunner

from cascade.cli import app

VISIT = {
    "stage": "tiny",
    "queued_s": 0.001,
    "run_s": 0.002,
    "batch_rows": 8,
    "attempt": 1,
    "confidence": 0.8,
    "p_correct": 0.91,
    "recalled": False,
    "gains": {"small": 0.004},
    "prices": {"small": 0.011},
    "slack_s": 0.95,
    "decision": "price",
    "onward": {
        "stage": "small",
        "value": 0.004,
        "price": 0.011,
        "base_price": 0.002,
        "protected": False,
        "waiting_rows": 3,
        "needs_s": 0.01,
        "affordable": True,
        "out": False,
    },
}
ROW = {
    "row": 0,
    "text": "left at `tiny`: not worth it",
    "stage": "tiny",
    "exit_reason": "price",
    "degraded": True,
    "cost": 1.0,
}
ROW |= {"took_s": 0.01, "visits": [VISIT]}
DOCUMENT = {
    "id": "a/b",
    "at": 1.0,
    "rows_of_request": 1,
    "class": {"priority": 1, "name": "gold"},
    "deadline_s": 1.0,
    "max_cost": None,
    "min_confidence": 0.9,
    "rate": 10.0,
    "load": 2.3,
    "certified_loss": 0.0123,
    "rows": [ROW],
}
PAGES = {
    "/v2/models": {"models": ["m"]},
    "/v2/models/m/explain": {"requests": [{"id": "a/b", "at": 1.0, "text": ROW["text"]}]},
    "/v2/models/m/explain/a%2Fb": DOCUMENT,
    "/v2/models/none/explain": {"requests": []},
}


class Pages(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        found = PAGES.get(self.path)
        content = json.dumps(found or {"error": f"Unknown request: nothing of {self.path}"}).encode()
        self.send_response(200 if found else 404)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Pages) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def run(*arguments: str):
    return CliRunner().invoke(app, ["explain", *arguments], env={"COLUMNS": "200"})


def test_a_request_is_explained_in_words_and_in_numbers(url):
    printed = run(url, "a/b").stdout
    for part in ("left at `tiny`: not worth it", "class gold", "load 2.30x", "certified loss 0.0123", "content with 0.9"):
        assert part in printed
    for cell in ("1.0 ms", "2.0 ms", "0.910", "price, not small", "0.0040", "0.0110", "0.0020", "0.950 s"):
        assert cell in printed


def test_without_an_id_the_last_ones_are_listed(url):
    assert run(url).stdout == "a/b  left at `tiny`: not worth it\n"
    assert "Cascade-Explain: ?1" in run(url, "--model", "none").stdout


def test_machines_get_the_document(url):
    assert json.loads(run(url, "a/b", "--json").stdout) == DOCUMENT


def test_what_is_not_kept_is_said_as_the_server_says_it(url):
    result = run(url, "other")
    assert result.exit_code == 2
    assert "nothing of /v2/models/m/explain/other" in result.output


def test_a_server_that_is_not_there_is_said_plainly():
    for target in ("http://127.0.0.1:9", "127.0.0.1:8000"):
        result = run(target, "a")
        assert result.exit_code == 2
        assert "Traceback" not in result.output
