"""The load test as Locust runs it: its options, its one user, and when the test is over. Decides nothing about the run.

    locust -f loadtests/locustfile.py --headless --scenario step --host http://localhost:8000 --unit-rate 40

Works with the web interface, ``--processes``, ``--csv``, ``--html`` and ``--json``. Exit codes: 0 the run was carried out, 3
it was, but the generator could not keep up, 1 it was not.
"""

import time
from collections.abc import Sequence
from typing import Any

from locust import FastHttpUser, LoadTestShape, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.exception import StopUser
from locust.runners import WorkerRunner

from loadtests.client_side import Reading, read_answer
from loadtests.conductor import Conductor, Question, State
from loadtests.record import ANSWERED
from loadtests.scenarios import SCENARIOS
from loadtests.summary import exit_code, show

DEFAULT_SPEC = "deployments/loadtest/cascade.yaml"


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    """The options of a load test; those that a person may want to change show up in the web interface."""
    add = parser.add_argument
    add("--scenario", choices=list(SCENARIOS), default="step", help="what to ask of the server")
    add("--unit-rate", type=float, default=40.0, metavar="RATE", help="what the top stage can answer, requests/s")
    add("--stage0-rate", type=float, default=500.0, metavar="RATE", help="what stage 0 can answer, requests/s")
    add("--seed", type=int, default=0, help="of arrivals, rows and who asks")
    add("--spec", default=DEFAULT_SPEC, help="the ladder that is served", include_in_web_ui=False)
    add("--data", default="", help="labelled rows, instead of the spec's test rows", include_in_web_ui=False)
    add("--record", default="", metavar="FILE", help="write the recording to this .npz", include_in_web_ui=False)
    add("--system", default="cascade", help="what is being tested, for the recording", include_in_web_ui=False)
    add("--seconds-scale", type=float, default=1.0, metavar="X", help="stretch the scenario's times")
    add("--seconds", type=float, default=0.0, help="end the run before its scenario does; 0: do not")
    add("--trace", default="", metavar="FILE", help="scenario trace: Azure LLM CSV, or one instant in seconds a line")
    add("--speed", type=float, default=1.0, metavar="X", help="replay the trace so many times as fast")
    add("--give-up", type=float, default=10.0, metavar="S", help="seconds after which a client stops listening")
    add(
        "--lag-limit-ms",
        type=float,
        default=0.0,
        metavar="MS",
        help="send lag p99 allowed; 0: 20, or a tenth of the deadline",
    )


conductor = Conductor()


@events.init.add_listener
def on_init(environment: Environment, **_: Any) -> None:
    """Locust is set up: the processes learn to talk to each other."""
    conductor.join(environment)


@events.test_stop.add_listener
def on_test_stop(**_: Any) -> None:
    """Also when a person stopped it."""
    conductor.stopped()


@events.quitting.add_listener
def on_quitting(environment: Environment, **_: Any) -> None:
    """Say what came of it, also to the shell."""
    if isinstance(environment.runner, WorkerRunner):
        environment.process_exit_code = 0
        return
    # With --json, standard output belongs to Locust's document.
    show(conductor, stderr=environment.parsed_options.json)
    if conductor.state is not State.IDLE:
        environment.process_exit_code = exit_code(conductor)


class UntilItIsOver(LoadTestShape):
    """One user for each process, until the conductor has what all of them saw. The rate is no business of Locust's."""

    def reset_time(self) -> None:
        """A test is about to start, for the first time or again."""
        conductor.prepare()

    def tick(self) -> tuple[int, float] | None:
        """Users and how many of them to start a second; None when it is over."""
        users = conductor.tick()
        return None if users is None else (users, float(users))


class OneClientOfMany(FastHttpUser):
    """Sends the whole share of one process; stands for as many clients as there are requests in flight."""

    concurrency = 100_000
    """Locust's own bound of 10 connections would close the loop."""

    def __init__(self, environment: Environment) -> None:
        self.network_timeout = self.connection_timeout = environment.parsed_options.give_up
        super().__init__(environment)

    @task
    def send_the_share(self) -> None:
        """All of it, once."""
        conductor.perform(self.host, self.ask)
        raise StopUser

    def ask(self, question: Question, scheduled: float, attempt: int, stages: Sequence[str]) -> Reading:
        """Send one request and report it to Locust, with the latency from its scheduled instant."""
        path, body, headers = question
        with self.client.post(path, data=body, headers=headers, catch_response=True) as response:
            reading = read_answer(response.status_code, response.headers, response.content, stages)
            if not response.status_code:
                reading = reading._replace(fault=f"{reading.fault}: {type(response.error).__name__}")
            response.request_meta["response_time"] = (time.perf_counter() - scheduled) * 1e3
            if reading.status == ANSWERED:
                response.request_meta["name"] = f"stage {reading.stage} {stages[reading.stage]}"
                response.success()
            else:
                outcome = "shed" if reading.status == 503 else "error"
                response.request_meta["name"] = outcome if attempt == 1 else f"{outcome}, asked again"
                response.failure(reading.fault)
        return reading
