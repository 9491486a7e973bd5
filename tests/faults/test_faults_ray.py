"""Faults in a real cluster under load: what became of every request, and of the replicas that the faults befell.

One cluster, several faults one after the other, each as `python -m loadtests.faults` tries it, shorter. How fast answers
were is not judged here, where the machine may be busy; what they were, how many there are and who ran them is.
"""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.server import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.timeout(460)]

FAULTS = ("kill-fine", "hang-fine", "frozen-rough", "out-fair", "out-rough", "kill-router")
INVARIANTS = {"one outcome each", "none lost", "none wrong", "no other status"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Reports by fault."""
    folder = tmp_path_factory.mktemp("faults")
    command = [sys.executable, "-m", "loadtests.faults", "--fault", ",".join(FAULTS), "--load", "1"]
    command += ["--before", "3", "--during", "8", "--after", "4", "--out", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (folder / "faults.json").is_file(), done.stderr[-4000:]
    found = {run["fault"]: run for run in json.loads((folder / "faults.json").read_text())}
    assert found.keys() == set(FAULTS), done.stderr[-4000:]
    return found


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
