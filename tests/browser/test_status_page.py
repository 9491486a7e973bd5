"""The status page in a real browser, headless, over a server of recorded figures: words, widths, nothing blocked."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from typing import Any

import chromium
import pytest

from cascade.serving.status import page
from tests.answering import Answering, Given

pytestmark = chromium.needed


def figures(**live: Any) -> dict[str, Any]:
    """What three stages at work say."""
    stages = ("linear", "small", "large")
    return {
        "model": "fashion",
        "version": "1",
        "server": "0.1.0",
        "cost_unit": "MAC",
        "routers": {
            "expected": 2,
            "answered": 2,
            "each": [
                {"id": "abc123", "version": "4f2a", "problem": None, "rate": 700.0, "degraded": 0.1, "lag_s": 0.0012},
                {"id": "def456", "version": "4f2a", "problem": None, "rate": 534.0, "degraded": 0.1, "lag_s": 0.0009},
            ],
        },
        "live": {
            "rate": 1234.0,
            "prices": dict(zip(stages, (0.0, 0.0123, 0.0875), strict=True)),
            "shares": dict(zip(stages, (0.62, 0.3, 0.08), strict=True)),
            "degraded": 0.104,
            "certified_loss": 0.0142,
            "capacity": dict(zip(stages, (90000.0, 4200.0, 310.0), strict=True)),
            "replicas": dict(zip(stages, (1, 2, 4), strict=True)),
            "queue": dict(zip(stages, (0, 12, 48), strict=True)),
            "rows_per_s": dict(zip(stages, (1234.0, 470.0, 98.0), strict=True)),
            "batch_rows": dict(zip(stages, (5.2, 11.0, 15.9), strict=True)),
            "run_s": dict(zip(stages, (0.0002, 0.0061, 0.051), strict=True)),
            "queued_s": dict(zip(stages, (0.0004, 0.0035, 0.112), strict=True)),
            "joules_per_row": dict.fromkeys(stages),
            "depth": dict.fromkeys(stages),
            "idle_energy": dict.fromkeys(stages),
            "shed_per_s": 0.0,
            "answered_per_s": 1231.0,
            "expired_per_s": 0.0,
            "cost": 1.21e6,
            "joules": None,
            "window_s": 10.4,
            "predicted_accuracy": 0.912,
            "audited_accuracy": {"value": 0.907, "standard_error": 0.006, "rows": 312},
            "audited_disagreement": {"value": 0.041, "standard_error": 0.01, "rows": 312},
            "audit_coverage": 0.93,
            "lag_s": 0.0012,
            "plan_age_s": 0.3,
            "classes": {
                "1": {"answered_per_s": 800.0, "degraded": 0.02, "shed_per_s": 0.0},
                "2": {"answered_per_s": 431.0, "degraded": 0.26, "shed_per_s": 0.0},
            },
            **live,
        },
    }


class Served(Answering):
    """A server of the page, and of figures that a test chooses.

    Attributes:
        answer: status and document for the n-th time that figures are asked for; no answer at all for None.
        asked: how often they have been.
    """

    def __init__(self) -> None:
        self.answer: Callable[[int], tuple[int, Any] | None] = lambda _: (200, figures())
        self.asked = 0
        self.paths: list[str] = []
        super().__init__(self._give)

    def _give(self, path: str) -> Given | None:
        self.paths.append(path)
        if path.endswith("/status"):
            headers, body = page()
            return 200, [(name.decode(), value.decode()) for name, value in headers], body
        if not path.endswith("/status/figures"):
            return 404, (), b""
        self.asked += 1
        answer = self.answer(self.asked)
        return None if answer is None else (answer[0], (), json.dumps(answer[1]).encode())


@pytest.fixture
def served() -> Iterator[Served]:
    server = Served()
    yield server
    server.close()


def browse(url: str, folder: Path, *options: str, seconds: float = 2.5) -> tuple[str, str]:
    """A page after so many seconds of its own time: its document, and what the browser complained about."""
    options = options or ("--dump-dom",)
    budget = f"--virtual-time-budget={int(1000 * seconds)}"
    command = chromium.headless(folder, budget, "--enable-logging=stderr", *options, url)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=150)
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, "\n".join(complaints)


def shown(dom: str) -> str:
    """The text that is in a document, scripts and markup aside, in one line."""
    dom = re.sub(r"<(script|style)>.*?</\1>", "", dom, flags=re.DOTALL)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", dom)))


def test_the_figures_are_shown_and_nothing_is_blocked(served: Served, tmp_path: Path) -> None:
    dom, complaints = browse(f"{served.url}/status", tmp_path)
    text = shown(dom)
    assert complaints == ""
    for words in (
        "fashion version 1 · cascade 0.1.0 degraded by load",
        "1,234 rows/s 1,231/s answered",
        "Degraded 10 %",
        "91.2 % audited 90.7 % ± 0.6 (312) 4.1 % differ",
        "≤ 1.4 points",
        "1.21M MAC",
        "small 30 % 0.012 12 2 11 %",
        "2 431/s 26 %",
        "Routers: 2 of 2 answered",
        "abc123 700/s 10 % 1.2 ms 4f2a",
    ):
        assert words in text, words
    grows = [float(found) for found in re.findall(r"flex-grow: ([\d.]+);", dom)]
    assert grows == [0.62, 0.3, 0.08], "the bar's parts are as wide as the shares"
    assert re.search(r'id="rates"[^>]*><path d="M[\d. L-]+', dom), "a curve is drawn once there are two points"
    assert served.asked >= 2
    assert {path for path in served.paths if not path.startswith("/status")} == set(), "nothing else is loaded"


def test_it_works_under_a_route_prefix(served: Served, tmp_path: Path) -> None:
    dom, _ = browse(f"{served.url}/some/where/status", tmp_path)
    assert "1,234 rows/s" in shown(dom)
    assert "/some/where/status/figures" in served.paths


def test_a_server_that_starts_is_said_to_start(served: Served, tmp_path: Path) -> None:
    served.answer = lambda _: (503, {})
    dom, _ = browse(f"{served.url}/status", tmp_path)
    assert "starting" in shown(dom)
    assert re.search(r'<main id="all" hidden', dom), "there are no figures yet"


def test_a_server_that_is_gone_is_said_to_be_gone_and_its_last_figures_stay(served: Served, tmp_path: Path) -> None:
    served.answer = lambda time: (200, figures()) if time < 3 else None
    dom, _ = browse(f"{served.url}/status", tmp_path, seconds=6)
    text = shown(dom)
    assert "unreachable The server cannot be reached. Last seen" in text
    assert "1,234 rows/s" in text
    assert 'class="stale"' in dom


def test_it_recovers(served: Served, tmp_path: Path) -> None:
    served.answer = lambda time: None if time < 3 else (200, figures(degraded=0.0))
    dom, _ = browse(f"{served.url}/status", tmp_path, seconds=8)
    assert re.search(r"cascade 0\.1\.0 running ", shown(dom))


def test_what_is_wrong_comes_before_what_is_degraded(served: Served, tmp_path: Path) -> None:
    found = figures(replicas={"linear": 1, "small": 2, "large": 0}, prices={"linear": 0.0, "small": 0.1, "large": None})
    found["routers"]["answered"] = 1
    found["routers"]["each"].pop()
    served.answer = lambda _: (200, found)
    text = shown(browse(f"{served.url}/status", tmp_path)[0])
    assert "running without large" in text
    assert "large 8.0 % out 48 0" in text
    assert "of the routers that answered, not of all" in text


def test_an_idle_server_shows_that_it_knows_nothing(served: Served, tmp_path: Path) -> None:
    nothing = dict.fromkeys(("linear", "small", "large"))
    idle = figures(
        rate=0.0, shares=nothing, degraded=None, certified_loss=None, batch_rows=nothing, run_s=nothing, queued_s=nothing,
        predicted_accuracy=None, audited_accuracy=None, audited_disagreement=None, cost=None, classes={},
    )  # fmt: skip
    served.answer = lambda _: (200, idle)
    dom, complaints = browse(f"{served.url}/status", tmp_path)
    text = shown(dom)
    assert complaints == ""
    assert "NaN" not in text
    assert "null" not in text
    assert "no audit has ended yet" in text
    assert re.search(r'id="classcard" hidden', dom)
    assert re.search(r'id="shares"[^>]*hidden', dom)


def test_names_are_text_and_never_markup(served: Served, tmp_path: Path) -> None:
    found = figures()
    found["model"] = "<img src=x onerror=alert(1)>"
    served.answer = lambda _: (200, found)
    dom, complaints = browse(f"{served.url}/status", tmp_path)
    assert complaints == ""
    assert "&lt;img src=x" in dom
    assert "/x" not in served.paths
