"""The verdict on recorded runs: everything as promised passes, and each thing that goes wrong fails the clause it breaks."""

import json
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from loadtests.clauses import requests_needed
from loadtests.judge import judge_runs
from loadtests.recovery import excess_deviation
from loadtests.tables import BEGIN, END, markdown, show, write_section
from tests.loadtests.recorded import (
    SCENARIO_SET,
    all_good,
    at_stage,
    concluding,
    failing,
    good,
    in_phase,
    labelled,
    limits,
    overwhelmed,
    refuse,
    slow,
    some,
    with_change,
)


@pytest.fixture(scope="module")
def bounds():
    return limits()


@pytest.fixture(scope="module")
def proved(bounds):
    return judge_runs(all_good(), bounds)


def clause(verdict, letter):
    return next(each for each in verdict.clauses if each.letter == letter)


def after(recording, seconds, until=np.inf):
    """Requests that come so long after the load of the last stretch but one."""
    since = recording.scheduled_s - recording.arrivals.edges[-2]
    return (since >= seconds) & (since < until)


def test_a_series_that_keeps_every_promise_passes(proved):
    assert proved.passed
    assert [each.passed for each in proved.clauses] == [True] * 9


def unsteady(recording):
    """For a second everything goes on to the last stage, for the next nothing does."""
    on = (recording.scheduled_s.astype(int) % 2 == 0) & recording.answered
    return replace(recording, stage=np.where(on, 2, np.where(recording.answered, 0, -1)).astype(np.int8))


def late_generator(recording):
    return replace(recording, lag_s=np.where(some(concluding(recording), 0.05), 0.15, recording.lag_s))


BROKEN = {
    "an SLO of 98 % in one phase": ("steady-10", slow(lambda run: some(concluding(run), 0.02), 1.2), "a"),
    "one rejection": ("steady-0.5", refuse(lambda run: np.arange(len(run.row)) == len(run.row) - 9), "b"),
    "one retry": ("steady-1", lambda run: replace(run, attempts=1 + (np.arange(len(run.row)) == 300).astype(np.int8)), "b"),
    "a connection lost": (
        "ramp",
        lambda run: replace(run, status=np.where(np.arange(len(run.row)) == 300, 0, run.status)),
        "b",
    ),
    "more right under more load": ("steady-10", labelled(lambda run: some(concluding(run), 0.9), True), "c"),
    "answers worse than those of stage 0": ("step", labelled(lambda run: some(in_phase(run, "load"), 0.4), False), "c"),
    "little won over stage 0": ("steady-8", at_stage(lambda run: some(concluding(run), 0.4), 0), "c"),
    "too much turned away beyond stage 0's rate": ("saturation", refuse(lambda run: some(concluding(run), 0.4)), "d"),
    "late answers beyond stage 0's rate": ("saturation", slow(lambda run: some(concluding(run), 0.03), 1.2), "d"),
    "a slow recovery of accuracy": ("step", at_stage(lambda run: after(run, 0, 7), 0), "e"),
    "a queue that stays": ("step", slow(lambda run: after(run, 0, 7), 0.7), "e"),
    "hysteresis": ("ramp", at_stage(lambda run: in_phase(run, "down 2", "down 3"), 0), "e"),
    "an oscillating mix": ("steady-6", unsteady, "f"),
    "a generator that falls behind": ("steady-2", late_generator, "g"),
    "a storm that keeps the server down": ("storm", slow(lambda run: after(run, 0), 1.5), "ar"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_each_broken_promise_fails_its_clause_and_no_other(what, bounds):
    scenario, change, letters = BROKEN[what]
    verdict = judge_runs(with_change(scenario, change), bounds)
    assert failing(verdict.clauses) == set(letters), [each.measured for each in verdict.clauses]
    assert not verdict.passed


def test_the_first_two_seconds_after_an_overload_are_recovery(bounds):
    verdict = judge_runs(with_change("storm", slow(lambda run: after(run, 0, 1.9), 1.5)), bounds)
    assert verdict.passed


def test_a_slow_first_second_after_a_step_is_allowed(bounds):
    verdict = judge_runs(with_change("step", at_stage(lambda run: after(run, 0, 1.9), 0)), bounds)
    assert verdict.passed


@pytest.mark.parametrize(
    ("scenario", "letters"),
    [("steady-2", "c"), ("steady-8", "c"), ("saturation", "d"), ("step", "e"), ("ramp", "e"), ("storm", "r")],
)
def test_a_run_that_is_missing_fails_the_clause_that_needs_it(scenario, letters, bounds):
    runs = all_good()
    del runs["cascade"][SCENARIO_SET.index(scenario)]
    assert failing(judge_runs(runs, bounds).clauses) == set(letters)


def test_nothing_recorded_proves_nothing(bounds):
    verdict = judge_runs({}, bounds)
    assert failing(verdict.clauses) == set("abcdefghr")
    json.dumps(verdict.document())


def test_a_baseline_that_is_missing_or_invalid_fails_the_comparison(bounds):
    runs = all_good()
    del runs["static"]
    verdict = judge_runs(runs, bounds)
    assert failing(verdict.clauses) == {"h"}
    assert "static" in clause(verdict, "h").measured
    runs = all_good()
    runs["top"][1] = late_generator(runs["top"][1])
    assert failing(judge_runs(runs, bounds).clauses) == {"g", "h"}


def test_requests_that_were_never_sent_make_a_run_invalid(bounds):
    def cut(run):
        kept = np.arange(len(run.row)) < 0.95 * len(run.row)
        return replace(
            run, **{name: getattr(run, name)[kept] for name in run.__dataclass_fields__ if name not in ("arrivals", "meta")}
        )

    assert "g" in failing(judge_runs(with_change("steady-4", cut), bounds).clauses)


def test_fixed_thresholds_in_the_place_of_the_policy_fail(bounds):
    runs = {
        "static": [overwhelmed(name, "static") for name in SCENARIO_SET],
        "top": [overwhelmed(name, "top") for name in ("steady-0.5", "steady-2", "steady-8", "saturation")],
    }
    verdict = judge_runs(runs, bounds, candidate="static")
    assert not verdict.passed
    assert {"a", "b", "c"} <= failing(verdict.clauses)
    assert clause(verdict, "h").passed  # it is compared with the other baseline only


def test_clauses_that_were_not_asked_for_are_neither_passed_nor_failed(bounds):
    runs = {"cascade": [good("steady-2")]}
    verdict = judge_runs(runs, bounds, clauses="abg")
    assert verdict.passed
    assert {each.letter for each in verdict.clauses if each.passed is None} == set("cdefhr")


def test_the_comparison_is_paired_where_both_met_the_same_requests(proved, bounds):
    found = {(each.baseline, each.scenario): each for each in proved.comparisons}
    assert len(found) == 8
    ours, theirs = (run.correct[concluding(run)] for run in (good("steady-8"), overwhelmed("steady-8", "top")))
    each = found["top", "steady-8"]
    assert each.paired
    assert each.difference == pytest.approx(ours.mean() - theirs.mean())
    assert each.standard_error == pytest.approx((ours * 1.0 - theirs).std() / np.sqrt(len(ours)))
    runs = {**all_good(), "static": [overwhelmed("steady-8", "static", seed=2)]}
    unpaired = next(each for each in judge_runs(runs, bounds).comparisons if each.baseline == "static")
    assert not unpaired.paired


def test_how_many_requests_prove_the_slo():
    assert [requests_needed(late) for late in (0, 1, 5, 20, 50)] == [459, 662, 1307, 3304, 6898]


def test_chance_alone_is_no_oscillation_and_a_wave_is_one():
    random = np.random.default_rng(0)
    instants = np.sort(random.random(4000)) * 20
    excess, proved = excess_deviation(instants, (random.random(4000) < 0.3).astype(float))
    assert excess < 0.03
    assert not proved
    wave = 0.3 + 0.15 * np.sign(np.sin(2 * np.pi * instants / 4))
    excess, proved = excess_deviation(instants, (random.random(4000) < wave).astype(float))
    assert excess == pytest.approx(0.15, abs=0.02)
    assert proved


def test_the_document_is_plain_json_and_complete(proved):
    document = json.loads(json.dumps(proved.document(), allow_nan=False))
    assert document["passed"] is True
    assert [each["letter"] for each in document["clauses"]] == list("abcdefghr")
    phases = [phase for run in document["runs"]["cascade"] for phase in run["phases"]]
    assert {phase["scenario"] for phase in phases} == set(SCENARIO_SET)
    assert min(np.diff(document["curve"]["best"])) < 0


def test_the_tables_fit_a_terminal_of_eighty_columns(proved, bounds):
    for verdict in (proved, judge_runs({}, bounds)):
        console = Console(width=80, record=True, file=StringIO())
        show(verdict, console)
        text = console.export_text()
        assert max(map(len, text.splitlines())) <= 80
        assert f"VERDICT: {'PASS' if verdict.passed else 'FAIL'}" in text
        assert "…" not in text


def test_the_section_replaces_the_one_before_and_nothing_else(tmp_path, proved):
    page = tmp_path / "results.md"
    page.write_text(f"# Results\n\nbefore\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    write_section(proved, page)
    text = page.read_text()
    assert "old" not in text
    assert text.startswith("# Results\n\nbefore")
    assert text.endswith("after\n")
    assert markdown(proved) in text
    assert "(e) PASS" in text
