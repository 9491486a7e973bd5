"""What `cascade deploy` sends to a cluster, and how it follows what becomes of it. Knows Serve's REST API; prints nothing.

Serve's API takes the whole config at once, and an application that is not in it is removed. So what is sent holds the
applications that are there already, as they were deployed, beside the ladder's.
"""

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ray.serve._private.deploy_utils import get_app_code_version
from ray.serve.schema import ServeApplicationSchema

from cascade.assembly import Artefacts
from cascade.errors import ServerUnreachable
from cascade.serving.serve_file import BUILDER, ROUTER
from cascade.spec import Ladder
from cascade.versions import build_digest

POLL_S = 0.5
SETTLE_S = 1.5
"""Serve's controller takes up a config in its next round, some tenths of a second later; only then its word counts."""


class Cluster(Protocol):
    """A cluster's Serve, as its REST API shows it: `ray.dashboard.modules.serve.sdk.ServeSubmissionClient`, or a fake."""

    def get_serve_details(self) -> dict[str, Any]:
        """What runs."""
        ...

    def deploy_applications(self, config: dict[str, Any]) -> None:
        """Replace the whole config."""
        ...


@dataclass(frozen=True)
class Checked:
    """A ladder that passed every check.

    Attributes:
        ladder: the ladder.
        build: digest of what only new replicas take up.
        version: digest of all of it.
    """

    ladder: Ladder
    build: str
    version: str


def checked(ladder: Ladder) -> Checked:
    """Check a ladder's files as the server would: weights, networks, calibration, certificate, floors.

    Raises:
        ConfigError: one of them is wrong, missing, or does not belong.
    """
    from cascade.loading import check_networks

    artefacts = Artefacts.read(ladder)
    check_networks(ladder)
    return Checked(ladder, build_digest(ladder, artefacts.digests), artefacts.version)


def with_digests(application: dict[str, Any], found: Checked) -> dict[str, Any]:
    """An application's config that says which build and which version of its ladder are meant.

    Args:
        application: the config; digests that stand there already are replaced.
        found: its ladder.
    """
    application = copy.deepcopy(application)
    application["args"] = {**application.get("args", {}), "build": found.build}
    deployments = [dict(entry) for entry in application.get("deployments") or ()]
    router = next((entry for entry in deployments if entry["name"] == ROUTER), None)
    if router is None:
        router = {"name": ROUTER}
        deployments.append(router)
    router["user_config"] = {"version": found.version}
    application["deployments"] = deployments
    return application


def application_of(spec: str, name: str, route_prefix: str, **args: Any) -> dict[str, Any]:
    """The config of a ladder's application.

    Args:
        spec: path of its spec, the same on every node.
        name: of the application.
        route_prefix: before its routes, where Serve listens.
        args: further arguments, see `cascade.serving.app.AppArgs`; those that are None are left out.
    """
    given = {key: value for key, value in args.items() if value is not None}
    return {"name": name, "route_prefix": route_prefix, "import_path": BUILDER, "args": {"spec": spec, **given}}


def merged(document: Mapping[str, Any], details: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The config to send: a document, and what is deployed on the cluster beside it.

    Args:
        document: the config of some applications; options of Serve itself that it leaves out stay as they are.
        details: what runs.

    Returns:
        The config, and the names of the applications that were added to it.
    """
    config = copy.deepcopy(dict(document))
    for option in ("proxy_location", "http_options", "grpc_options"):
        if option not in config and details.get("applications") and details.get(option):
            config[option] = copy.deepcopy(details[option])
    ours = {application["name"] for application in config["applications"]}
    kept = [
        copy.deepcopy(running["deployed_app_config"])
        for name, running in (details.get("applications") or {}).items()
        if name not in ours and running.get("deployed_app_config")
    ]
    config["applications"] = [*config["applications"], *kept]
    return config, [application["name"] for application in kept]


def change(application: dict[str, Any], details: Mapping[str, Any]) -> str:
    """What sending an application's config will do: ``new``, ``none``, ``live`` or ``replicas``.

    ``live`` changes leave every replica where it is; ``replicas`` are replaced, one after the other.
    """
    running = (details.get("applications") or {}).get(application["name"])
    before = None if running is None else running.get("deployed_app_config")
    if before is None:
        return "new"
    old, new = (ServeApplicationSchema.model_validate(each) for each in (before, application))
    if old == new:
        return "none"
    return "live" if get_app_code_version(old) == get_app_code_version(new) else "replicas"


@dataclass(frozen=True)
class Progress:
    """How far an application is.

    Attributes:
        name: the application.
        status: in Serve's words: DEPLOYING, RUNNING, DEPLOY_FAILED, UNHEALTHY and so on.
        deployments: how many replicas of each are ready, and how many there shall be.
        messages: what Serve says of those that are not as they should be.
    """

    name: str
    status: str
    deployments: Mapping[str, tuple[int, int]]
    messages: Sequence[str]

    @property
    def done(self) -> bool:
        """Whether it runs as it was deployed."""
        return self.status == "RUNNING" and not self.messages

    @property
    def failed(self) -> bool:
        """Whether Serve has given it up."""
        return self.status == "DEPLOY_FAILED"


def progress_of(name: str, details: Mapping[str, Any]) -> Progress:
    """How far an application is, by what runs."""
    running = (details.get("applications") or {}).get(name)
    if running is None:
        return Progress(name, "NOT_STARTED", {}, ())
    deployments, messages = {}, [running["message"]] if running.get("message") else []
    for each, state in (running.get("deployments") or {}).items():
        ready = sum(replica["state"] == "RUNNING" for replica in state["replicas"])
        deployments[each] = ready, state["target_num_replicas"]
        if state["status"] != "HEALTHY":
            messages.append(f"{each}: {state['status']}" + (f": {state['message'].strip()}" if state["message"] else ""))
    return Progress(name, running["status"], deployments, messages)


def follow(
    cluster: Cluster,
    names: Sequence[str],
    limit_s: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[list[Progress]]:
    """Look again and again until every application runs or one has failed, or for so long; to be called after sending.

    Args:
        cluster: where.
        names: of the applications.
        limit_s: seconds after which it ends whatever there is.
        clock: seconds.
        sleep: waits.
    """
    began = clock()
    while True:
        sleep(POLL_S)
        seen = [progress_of(name, cluster.get_serve_details()) for name in names]
        yield seen
        waited = clock() - began
        if any(each.failed for each in seen) or waited > limit_s:
            return
        if waited > SETTLE_S and all(each.done for each in seen):
            return


def connect(address: str) -> Cluster:
    """The Serve of a cluster.

    Args:
        address: of its dashboard, as ``http://host:8265``.

    Raises:
        ServerUnreachable: nobody answers there, or asks for a token that is not in the environment.
    """
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

    try:
        client: Cluster = ServeSubmissionClient(address)
        client.get_serve_details()
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ServerUnreachable(f"{address}: {error}") from error
    return client
