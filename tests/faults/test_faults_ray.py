"""Faults in a real cluster under load: what became of every request, and of the replicas that the faults befell.

One cluster, several faults one after the other, each as `python -m loadtests.faults` tries it, shorter. How fast answers
were is not judged here, where the machine may be busy; what they were, how many there are and who ran them is.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.server import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.timeout(540)]

FAULTS = ("kill-fine", "hang-fine", "frozen-rough", "out-fair", "out-rough", "kill-router", "leave", "poison")
INVARIANTS = {"one outcome each", "none lost", "none wrong", "no other status"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the runs wrote."""
    folder = tmp_path_factory.mktemp("faults")
    command = [sys.executable, "-m", "loadtests.faults", "--fault", ",".join(FAULTS), "--load", "1"]
    command += ["--before", "3", "--during", "8", "--after", "4", "--out", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (folder / "faults.json").is_file(), done.stderr[-4000:]
    found = {run["fault"] for run in json.loads((folder / "faults.json").read_text())}
    assert found == set(FAULTS), done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, dict[str, Any]]:
    """Reports by fault."""
    return {run["fault"]: run for run in json.loads((folder / "faults.json").read_text())}


def findings(run: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {finding["name"]: finding for finding in run["findings"]}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_request_has_one_outcome_and_none_is_lost_or_wrong(runs, fault):
    found = findings(runs[fault])
    assert found.keys() >= INVARIANTS
    assert [finding for name, finding in found.items() if name in INVARIANTS and not finding["kept"]] == []
    assert runs[fault]["sent"] > 300


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "out-rough"])
def test_no_request_fails_whose_first_stage_could_answer(runs, fault):
    assert runs[fault]["failed"] == 0, runs[fault]["why"]


@pytest.mark.parametrize("fault", ["hang-fine", "frozen-rough"])
def test_a_replica_that_stops_answering_is_left_out_and_comes_back(runs, fault):
    found = findings(runs[fault])
    assert found["ejected"]["kept"], found["ejected"]
    assert found["back again"]["kept"], found["back again"]


def test_without_its_middle_stage_the_ladder_goes_on_to_the_last(runs):
    during = runs["out-fair"]["during"]
    assert during["stages"]["fair"] == 0
    assert during["stages"]["fine"] > 0


def test_without_stage_0_requests_are_turned_away_and_told_when_to_come_back(runs):
    refusals = runs["out-rough"]["refusals"]
    assert refusals["count"] == refusals["with_retry_after"] > 0
    assert runs["out-rough"]["after"]["answered"] > 0


def test_the_other_router_goes_on(runs):
    run = runs["kill-router"]
    assert run["during"]["answered"] == run["during"]["sent"] > 0


@pytest.mark.parametrize("fault", ["leave", "poison"])
def test_clients_that_behave_badly_are_told_so_and_nobody_else_notices(runs, fault):
    told = findings(runs[fault])["told as it should be"]
    assert told["kept"], told
    assert findings(runs[fault])["all answered"]["kept"]


def test_all_of_it_was_on_nodes_whose_clocks_are_days_apart(folder):
    ahead_s = json.loads((folder / "clocks.json").read_text())
    if max(map(abs, ahead_s)) < 60:
        pytest.skip("nodes shared their clock: this system lets nobody have one of their own")
    assert min(ahead_s) > 80_000
    assert max(ahead_s) - min(ahead_s) > 80_000
