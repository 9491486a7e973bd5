"""The two baselines of the load tests as their command starts them: right answers, and what happens to too many requests."""

from collections.abc import Iterator

import numpy as np
import pytest

from benchmarks.load import Answers, header, send_all, status_and_body
from cascade.assembly import read_artefacts
from cascade.calibration.judging import judge_table
from cascade.calibration.outcomes import OutcomeTable
from cascade.spec import Ladder
from cascade.wire.client import InferAnswer, decode_answer
from loadtests.measure_capacity import encoded
from loadtests.servers import Server, started
from tests.server import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

SPEC = ROOT / "deployments" / "loadtest" / "cascade.yaml"
LADDER = Ladder.read(SPEC)
ROWS = np.arange(48)
MORE_THAN_FIT = 64


@pytest.fixture(scope="module")
def outcomes() -> OutcomeTable:
    return OutcomeTable.read(LADDER.table_path.with_name("test-outcomes.npz"))


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started("static", SPEC, tmp_path_factory.mktemp("static")) as server:
        yield server


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started("top", SPEC, tmp_path_factory.mktemp("top")) as server:
        yield server


def ask(server: Server, connections: int) -> Answers:
    return send_all(server.port, encoded(LADDER, ROWS), connections, max(len(ROWS), connections))


def decoded(answers: Answers) -> dict[int, InferAnswer]:
    """Answers by row; all of them must be."""
    found = {}
    for row, raw in zip(answers.rows, answers.raw, strict=True):
        status, head, body = status_and_body(raw)
        assert status == 200
        found[row] = decode_answer(body, header(head, b"inference-header-content-length").decode())
    return found


def test_fixed_thresholds_answer_each_row_where_its_evidence_stops(static: Server, outcomes: OutcomeTable) -> None:
    exits = judge_table(outcomes, read_artefacts(LADDER)[0]).exits(LADDER.spec.base_prices)
    names = [stage.name for stage in LADDER.spec.stages]
    for row, answer in decoded(ask(static, 4)).items():
        assert answer.parameters["cascade_stage"] == names[exits[row]]
        assert answer.parameters["cascade_degraded"] is False


def test_the_top_stage_answers_everything_as_its_outcomes_say(top: Server, outcomes: OutcomeTable) -> None:
    last = LADDER.spec.stages[-1]
    labels = outcomes.probs(last.name)[ROWS].argmax(axis=1)
    for row, answer in decoded(ask(top, 4)).items():
        assert answer.outputs["label"][0] == labels[row]
        assert answer.parameters["cascade_stage"] == last.name
        assert answer.parameters["cascade_exit_reason"] == "last_stage"
        assert answer.parameters["cascade_cost"] == last.cost


def test_serve_itself_turns_away_what_the_top_stage_cannot_hold(top: Server) -> None:
    heads = [status_and_body(raw)[:2] for raw in ask(top, MORE_THAN_FIT).raw]
    refused = [head for status, head in heads if status == 503]
    assert {status for status, _ in heads} == {200, 503}
    assert all(header(head, b"retry-after") == b"1" for head in refused)
