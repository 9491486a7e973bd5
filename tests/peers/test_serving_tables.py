"""The tables of the serving benchmark: who stands in them, how spread is shown, what is said to limit a system."""

import re
from io import StringIO

import pytest
from rich.console import Console

from benchmarks.tables import limits, markdown, replace_section, show, write_section
from tests.peers.documents import CHEAP, WHOLE, document, point, profile


def test_a_row_holds_the_median_and_the_extremes_of_the_rounds() -> None:
    points = [point("mosec", "32 connections", each, round=number) for number, each in enumerate((100.0, 900.0, 200.0))]
    assert "| 32 connections | mosec | 200 (100–900) |" in markdown(document(points))


def test_a_single_round_has_no_spread() -> None:
    assert "| 32 connections | mosec | 100 |" in markdown(document([point("mosec", "32 connections", 100.0)]))


def test_systems_are_compared_load_by_load_and_ladder_by_ladder() -> None:
    points = [point(system, load, 10.0) for system in ("mosec", "cascade") for load in ("1 connection", "half load")]
    points.append(point("cascade", "half load", 5.0, ladder=WHOLE))
    rows = re.findall(r"^\| (1 connection|half load) \| (\w+) ", markdown(document(points)), re.MULTILINE)
    expected = [("1 connection", "mosec"), ("1 connection", "cascade"), ("half load", "mosec"), ("half load", "cascade")]
    assert rows == [*expected, ("half load", "cascade")]


def test_a_missing_peer_is_named_with_the_last_line_of_its_reason() -> None:
    made = document(
        [point("cascade", "1 connection", 10.0)], missing={"litserve": "it exited:\n  a trace\nImportError: torch"}
    )
    assert "- *litserve* is missing: ImportError: torch" in markdown(made).splitlines()


def test_a_noisy_machine_is_said_to_be_one() -> None:
    quiet, loud = (markdown(document([point("cascade", "1 connection", 10.0, other_share=share)])) for share in (0.05, 0.2))
    assert "not for the record" in loud
    assert "not for the record" not in quiet


@pytest.mark.parametrize(
    ("router", "stage", "verdict"),
    [
        (0.95, 0.2, "one process, router, 0.95 of a core"),
        (0.9, 0.85, "the machine's CPU, 1.75 of 2 cores beside the client's 0.10"),
        (0.5, 0.2, "waiting: its busiest process, router, takes 0.50 of a core"),
    ],
)
def test_a_limit_is_a_full_process_a_full_machine_or_waiting(router: float, stage: float, verdict: str) -> None:
    throughput = 100.0
    by_process = {"stage": 1e3 * stage / throughput, "router": 1e3 * router / throughput}
    cpu_ms = sum(by_process.values())
    points = [point("cascade", "32 connections", throughput, cpu_ms=cpu_ms, cpu_ms_by_process=by_process)]
    (line,) = limits(document(points, profiles=[profile("cascade", {"torch": 1.0})]))
    assert verdict in line


def test_groups_that_are_too_small_to_name_are_summed_up() -> None:
    shares = {"HTTP": 0.5, "torch": 0.43, "validation": 0.03, "event loop": 0.03, "allocator": 0.01}
    points = [point("cascade", "32 connections", 100.0)]
    (line,) = limits(document(points, profiles=[profile("cascade", shares)]))
    assert "HTTP 50%, torch 43%, the rest 7%; 25% in the kernel" in line


def test_a_profile_without_stacks_says_why() -> None:
    points = [point("cascade", "32 connections", 100.0)]
    (line,) = limits(document(points, profiles=[profile("cascade", {"router": 1.0}, missed="Permission denied")]))
    assert "no stacks: Permission denied" in line


def test_the_section_takes_the_place_of_the_old_one_and_leaves_the_rest(tmp_path) -> None:
    path = tmp_path / "results.md"
    made = document([point("cascade", "1 connection", 10.0)])
    replace_section(path, "<!-- other -->", "<!-- end other -->", "other")
    write_section(made, path)
    write_section(made, path)
    text = path.read_text()
    assert text.count("## Serving: cascade beside its peers") == 1
    assert "<!-- other -->\nother\n<!-- end other -->" in text


def test_every_target_stands_in_the_section_and_on_the_terminal() -> None:
    made = document([point("cascade", "32 connections", 100.0), point("by-hand", "32 connections", 1.0)])
    console = Console(record=True, width=200, file=StringIO())
    show(made, console)
    for text in (markdown(made), console.export_text()):
        assert "throughput over by-hand, 32 connections" in text
        assert "x100.0" in text
        assert CHEAP in text
