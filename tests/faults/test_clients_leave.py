"""Clients that hang up: nothing of them is left, what was not sent yet is not run, and every request has one outcome."""

import asyncio
import random

from client_cases import ask, leave, message, served, until
from ladders import SURE, UNSURE, config, told

from cascade.serving.fakes import FakeStage


class Gated(FakeStage):
    """A stage whose batches wait until they are let go."""

    def __init__(self, stage: int = 0) -> None:
        super().__init__(told(stage))
        self.go = asyncio.Event()

    def let_go(self) -> None:
        """Those that wait now, and none that comes later."""
        self.go.set()
        self.go.clear()

    async def run(self, inputs):
        self.calls.append(inputs)
        await self.go.wait()
        self.calls.pop()
        return await super().run(inputs)


PATIENT = {"deadline": {"default_s": 60.0, "max_s": 60.0}}


async def test_rows_of_clients_that_have_left_are_not_run():
    stage = Gated()
    async with served([stage], configs=[config(slots=1)], **PATIENT) as server:
        first = asyncio.create_task(ask(server.port, message(SURE)))
        await until(lambda: len(stage.calls) == 1)
        gone = asyncio.Event()
        leaving = [asyncio.create_task(leave(server.port, message(-SURE), gone)) for _ in range(10)]
        await until(lambda: server.router.policy.waiting(0) == 10)
        gone.set()
        await asyncio.gather(*leaving)
        await until(lambda: server.router.policy.waiting(0) == 0)
        stage.go.set()
        assert (await first)[0] == 200
        assert [call["x"].ravel().tolist() for call in stage.calls] == [[SURE]]
        await until(lambda: not server.left())
        assert server.router.requests == {"answered": 1, "refused": 0, "cancelled": 10}
        assert server.router.policy.counts.cancelled == 10


async def test_a_client_that_leaves_takes_nobody_of_its_batch_with_it():
    stage = Gated()
    async with served([stage], configs=[config(slots=1)], **PATIENT) as server:
        ahead = asyncio.create_task(ask(server.port, message(SURE)))
        await until(lambda: len(stage.calls) == 1)
        # The first to come is the one for whom the batch would be sent, were it anybody's.
        gone = asyncio.Event()
        leaving = asyncio.create_task(leave(server.port, message(-SURE), gone))
        await until(lambda: server.router.policy.waiting(0) == 1)
        mates = [asyncio.create_task(ask(server.port, message(SURE))) for _ in range(3)]
        await until(lambda: server.router.policy.waiting(0) == 4)
        stage.let_go()
        await until(lambda: len(stage.calls) == 2)
        assert sorted(stage.calls[1]["x"].ravel()) == [-SURE, SURE, SURE, SURE]
        gone.set()
        await leaving
        await until(lambda: server.router.policy.counts.cancelled == 1)
        stage.let_go()
        assert [(await each)[0] for each in (ahead, *mates)] == [200] * 4
        assert len(stage.calls) == 2
        await until(lambda: not server.left())


async def test_rows_of_clients_that_leave_are_not_escalated():
    dear = Gated(1)
    stages = [FakeStage(told(0)), dear]
    async with served(stages, configs=[config(), config(cost=10.0, slots=1)], **PATIENT) as server:
        first = asyncio.create_task(ask(server.port, message(UNSURE, SURE)))
        await until(lambda: len(dear.calls) == 1)
        gone = asyncio.Event()
        leaving = [asyncio.create_task(leave(server.port, message(UNSURE, -SURE), gone)) for _ in range(5)]
        await until(lambda: server.router.policy.waiting(1) == 5)
        gone.set()
        await asyncio.gather(*leaving)
        await until(lambda: server.router.policy.waiting(1) == 0)
        dear.go.set()
        assert (await first)[0] == 200
        assert [len(call["x"]) for call in dear.calls] == [1]
        await until(lambda: not server.left())


async def test_when_three_of_ten_leave_every_request_has_one_outcome_and_nothing_is_left():
    chance = random.Random(1)
    stages = [FakeStage(told(0), seconds=0.02), FakeStage(told(1), seconds=0.05)]
    async with served(stages) as server:
        tasks_before = len(asyncio.all_tasks())

        async def client() -> int:
            await asyncio.sleep(chance.uniform(0, 1))
            content = message(chance.choice([SURE, UNSURE]), SURE)
            if chance.random() < 0.3:
                await leave(server.port, content, chance.uniform(0.02, 0.2))
                return 0
            return (await ask(server.port, content))[0]

        statuses = await asyncio.gather(*(client() for _ in range(300)))
        await until(lambda: not server.left() and sum(server.router.requests.values()) == 300)
        assert set(statuses) <= {0, 200, 503, 504}
        counts = server.router.policy.counts
        assert counts.arrived == counts.answered + counts.shed + counts.expired + counts.failed + counts.cancelled
        assert server.router.requests["answered"] >= statuses.count(200)
        await until(lambda: len(asyncio.all_tasks()) <= tasks_before)
