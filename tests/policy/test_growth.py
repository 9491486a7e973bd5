"""A row costs the policy as much with many replicas as with four: counted in instructions, so no clock decides.

Counted are the bytecode instructions of `cascade.policy`, under a load that grows with the slots. A search through all
batches, or all rows that wait, is some of them for each slot and shows at once.
"""

import sys
from collections.abc import Callable
from heapq import heappop, heappush
from random import Random

import pytest
from builders import MS, judged, ladder, request, stage

from cascade.policy.commands import Abandon, Command, Run, Shed

FEW, MANY = 4, 128
MOST_GROWTH = 1.5
"""Of the instructions a row, from few to many. The ratio of the logarithms is 3.5; a search through all is beyond that."""
DEADLINE_S = 256 * MS
STAGES = ({"batch": 4, "a_s": 4 * MS, "b_s": MS}, {"batch": 4, "cost": 10, "a_s": 32 * MS, "b_s": 8 * MS})
"""500 rows/s a slot, and 62.5."""


class Load:
    """Rows that come evenly, and a driver that carries everything out at once.

    Args:
        slots: of each stage.
        rate: rows a second for each slot.
        left: milliseconds of each row's deadline, drawn with equal chances.
        tenants: how many send.
    """

    def __init__(self, slots: int, rate: float, left: tuple[int, ...], tenants: int) -> None:
        self.policy = ladder(*(stage(slots, **each) for each in STAGES), usual_deadline_s=DEADLINE_S)
        self.gap_s = 1.0 / (rate * slots)
        self.left, self.tenants = left, tenants
        self.random = Random(0)
        self.back: list[tuple[float, int, object]] = []
        self.now, self.rows, self.sent, self.shed = 0.0, 0, 0, 0

    def run(self, seconds: float, rows: int = 0) -> None:
        """Go on for some time, and at least for some rows."""
        until_s, least = self.now + seconds, self.rows + rows
        while self.now < until_s or self.rows < least:
            timer, back_s = self.policy.next_timer(), self.back[0][0] if self.back else float("inf")
            arrives_s = self.rows * self.gap_s
            self.now = max(self.now, min(arrives_s, back_s, float("inf") if timer is None else timer))
            if timer is not None and timer <= self.now:
                self.obey(self.policy.tick(self.now))
            elif back_s <= self.now:
                batch = heappop(self.back)[2]
                gains = [[self.random.random()] for _ in batch.walks] if batch.stage == 0 else [[]] * len(batch.walks)
                self.obey(self.policy.completed(self.now, batch, judged(*gains)))
            else:
                deadline_s = self.now + self.random.choice(self.left) * MS
                tenant = f"t{self.random.randrange(self.tenants)}" if self.tenants > 1 else ""
                row = request(self.rows, self.now, deadline_s - 8 * MS, deadline_s, tenant=tenant)
                self.shed += isinstance(self.policy.arrived(self.now, [row]), Shed)
                self.rows += 1
            self.obey(self.policy.dispatch(self.now))

    def obey(self, commands: list[Command]) -> None:
        for command in commands:
            assert not isinstance(command, Abandon)
            if isinstance(command, Run):
                batch, self.sent = command.batch, self.sent + 1
                of_stage = STAGES[batch.stage]
                seconds = (of_stage["a_s"] + of_stage["b_s"] * len(batch.walks)) * self.random.uniform(0.9, 1.1)
                heappush(self.back, (self.now + seconds, self.sent, batch))


def instructions(what: Callable[[], None]) -> int:
    """Bytecode instructions of the policy that are run."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        if "cascade/policy" not in frame.f_code.co_filename.replace("\\", "/"):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        what()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize(
    ("rate", "left", "tenants"),
    [
        pytest.param(40.0, (256,), 1, id="without load"),
        pytest.param(250.0, (256,), 1, id="with the last stage crowded"),
        pytest.param(250.0, (256,), 3, id="with several tenants"),
        pytest.param(250.0, (88, 100, 120, 256), 1, id="with deadlines that are tight"),
        pytest.param(250.0, (88, 100, 120, 256), 3, id="with tight deadlines of several tenants"),
        pytest.param(1000.0, (256,), 1, id="with the first stage saturated"),
    ],
)
def test_a_row_costs_as_much_with_many_replicas_as_with_few(rate, left, tenants):
    costs = []
    for slots in (FEW, MANY):
        load = Load(slots, rate, left, tenants)
        load.run(DEADLINE_S)
        first = load.rows
        costs.append(instructions(lambda load=load: load.run(0.0, rows=200)) / (load.rows - first))
        assert (load.shed > 0) == (rate > 500)
    assert costs[1] <= MOST_GROWTH * costs[0]
