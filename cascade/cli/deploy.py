"""`cascade deploy`: a strict check, then what ``serve deploy`` does, then waiting until it runs.

Exit codes: 0 it runs, 1 the cluster did not come to run it, 2 the files, the arguments or the address are wrong.
"""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer
import yaml
from rich.markup import escape

from cascade.cli.console import console, errors, key_header, usage_errors
from cascade.errors import ConfigError, ServerUnreachable
from cascade.spec import Ladder
from cascade.spec_errors import read_mapping

if TYPE_CHECKING:
    from cascade.serving.deploying import Checked, Cluster, Progress

CONFIRM_S = 15.0
"""A router that runs takes a version up within a second; on a busy machine reading the files takes longer."""

File = Annotated[Path, typer.Argument(help="The ladder's cascade.yaml, or a Serve config file.", show_default=False)]
Address = Annotated[
    str, typer.Option(help="Dashboard of the cluster's head node.", envvar="RAY_DASHBOARD_ADDRESS", show_envvar=True)
]


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(deploy)


def deploy(
    file: File,
    address: Address = "http://127.0.0.1:8265",
    name: Annotated[
        str | None, typer.Option(help="Name of the application; with a cascade.yaml only, whose name it is by default.")
    ] = None,
    route_prefix: Annotated[
        str | None, typer.Option(help="Prefix of its routes; with a cascade.yaml only, / by default.")
    ] = None,
    listen: Annotated[str | None, typer.Option(help="host:port on which its routers take HTTP themselves.")] = None,
    listen_grpc: Annotated[str | None, typer.Option(help="The same for gRPC.")] = None,
    spec_path: Annotated[
        str | None, typer.Option(help="Path of the cascade.yaml on the cluster's nodes, if it is another there.")
    ] = None,
    surge: Annotated[
        bool, typer.Option(help="Start a replacement before the replica that it replaces is stopped.", show_default=True)
    ] = True,
    timeout: Annotated[float, typer.Option(help="Seconds to wait until it runs.", min=1)] = 600.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, and print the config instead of sending it.")] = False,
) -> None:
    """Check a ladder strictly and deploy it, beside what else is on the cluster.

    New prices, calibrations, certificates and weights of classes reach the routers that run, and no replica restarts; new
    networks replace replicas one after the other.
    """
    from cascade.serving import deploying

    with usage_errors():
        given = {
            "name": name,
            "route_prefix": route_prefix,
            "listen": listen,
            "listen_grpc": listen_grpc,
            "spec_path": spec_path,
        }
        document, found = read(file, surge=surge, **given)
        cluster, details = None, {}
        try:
            cluster = deploying.connect(address)
            details = cluster.get_serve_details()
        except ServerUnreachable:
            if not dry_run:
                raise
            errors.print(f"[yellow]{escape(address)} does not answer: nothing is known of what runs there[/yellow]")
        config = announced(document, found, details)
        if dry_run or cluster is None:
            console.print(yaml.safe_dump(config, sort_keys=False).rstrip(), markup=False, highlight=False, soft_wrap=True)
            return
        runs = sent(cluster, address, config, [each["name"] for each in document["applications"]], timeout)
        if runs and not confirmed(address, cluster.get_serve_details(), document, found):
            runs = False
    if not runs:
        raise typer.Exit(1)


def announced(document: dict[str, Any], found: Mapping[str, "Checked"], details: Mapping[str, Any]) -> dict[str, Any]:
    """The config to send, after saying what it will do.

    Args:
        document: the applications to deploy.
        found: their ladders, by application.
        details: what runs on the cluster.
    """
    from cascade.serving.deploying import change, merged

    config, kept = merged(document, details)
    for application in document["applications"]:
        one = found.get(application["name"])
        digests = "" if one is None else f" (build {one.build}, version {one.version})"
        console.print(
            f"[bold]{escape(application['name'])}[/bold]{digests}: {WORDS[change(application, details)]}",
            highlight=False,
            soft_wrap=True,
        )
    if kept:
        console.print(f"kept as they are: {', '.join(kept)}", markup=False, highlight=False)
    return config


def sent(
    cluster: "Cluster",
    address: str,
    config: dict[str, Any],
    names: list[str],
    timeout_s: float,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Send a config, and show how far its applications are until they run; whether they do.

    Raises:
        ServerUnreachable: the cluster does not take it.
    """
    try:
        cluster.deploy_applications(config)
    except (RuntimeError, OSError) as error:
        raise ServerUnreachable(f"{address} refused the config: {error}") from error
    seen = wait(cluster, names, timeout_s, sleep)
    return all(each.done for each in seen)


WORDS = {
    "new": "is new",
    "none": "is deployed like this already",
    "live": "routers take it up, and no replica restarts",
    "replicas": "replicas are replaced, one after the other",
}
"""What a change means, see `cascade.serving.deploying.change`."""


def read(
    file: Path,
    *,
    name: str | None = None,
    route_prefix: str | None = None,
    listen: str | None = None,
    listen_grpc: str | None = None,
    spec_path: str | None = None,
    surge: bool = True,
) -> tuple[dict[str, Any], dict[str, "Checked"]]:
    """The Serve config of a file, with the digests of its ladders, and these by application.

    Args:
        file: a cascade.yaml, or a Serve config file.
        name: see `deploy`, as for all that follow.
        route_prefix: see `deploy`.
        listen: see `deploy`.
        listen_grpc: see `deploy`.
        spec_path: see `deploy`.
        surge: see `deploy`.

    Raises:
        ConfigError: something is wrong with the file, a ladder of it, or the options.
    """
    from cascade.serving import deploying
    from cascade.serving.address import Address as HostAndPort
    from cascade.serving.serve_file import BUILDER, app_args, check_deployments, check_document

    options = {"--name": name, "--route-prefix": route_prefix, "--listen": listen, "--listen-grpc": listen_grpc}
    document = read_mapping(file)
    if "applications" not in document:
        ladder = Ladder.read(file)
        for text in (listen, listen_grpc):
            if text is not None:
                HostAndPort.parse(text)
        args = {"listen": listen, "listen_grpc": listen_grpc, "surge": None if surge else False}
        path = spec_path or str(file.resolve())
        application = deploying.application_of(path, name or ladder.spec.name, route_prefix or "/", **args)
        found = {application["name"]: deploying.checked(ladder)}
        document = {"applications": [deploying.with_digests(application, found[application["name"]])]}
        check_document(document, str(file))
        return document, found
    useless = [option for option, value in options.items() if value is not None] + (
        [] if spec_path is None else ["--spec-path"]
    )
    if useless or not surge:
        raise ConfigError(
            f"{file} is a Serve config file, which says itself what {', '.join(useless or ['--no-surge'])} would"
        )
    check_document(document, str(file))
    found, applications = {}, []
    for application in document["applications"]:
        where = f"{file}: applications.{application['name']}"
        if application["import_path"] == BUILDER:
            ladder = Ladder.read(app_args(application, where).spec)
            check_deployments(application, ladder.spec, where)
            found[application["name"]] = deploying.checked(ladder)
            application = deploying.with_digests(application, found[application["name"]])
        applications.append(application)
    if not found:
        raise ConfigError(f"{file}: no application of it is a ladder (import_path {BUILDER}); use `serve deploy`")
    return document | {"applications": applications}, found


def wait(
    cluster: "Cluster", names: list[str], timeout_s: float, sleep: Callable[[float], None] = time.sleep
) -> list["Progress"]:
    """Show how far applications are until they run; the last that was seen of each."""
    from cascade.serving.deploying import follow

    seen: list[Progress] = []
    with errors.status("deploying") as status:
        for seen in follow(cluster, names, timeout_s, sleep=sleep):  # the last is what counts
            status.update(" · ".join(escape(line) for line in lines(seen)))
    for each in seen:
        if each.done:
            console.print(f"[green]running[/green] {each.name}: {counted(each.deployments)}")
            continue
        verdict = "failed" if each.failed else f"not running after {timeout_s:g} s"
        errors.print(f"[bold red]{each.name}: {verdict}[/bold red] ({each.status}; {counted(each.deployments)})")
        for message in each.messages:
            errors.print(f"  {message}", markup=False, highlight=False)
    return seen


def lines(seen: list["Progress"]) -> Iterator[str]:
    """One line for each application."""
    for each in seen:
        yield f"{each.name} {each.status.lower()}: {counted(each.deployments)}"


def counted(deployments: Mapping[str, tuple[int, int]]) -> str:
    """Replicas that are ready, of those that shall be."""
    return ", ".join(f"{name} {ready}/{wanted}" for name, (ready, wanted) in deployments.items()) or "no replica yet"


def confirmed(address: str, details: Mapping[str, Any], document: dict[str, Any], found: Mapping[str, "Checked"]) -> bool:
    """Whether the routers of all ladders of a config decide by what was deployed, as far as they can be asked."""
    answers = [confirm(address, details, each, found) for each in document["applications"]]
    return all(answers)


def confirm(address: str, details: Mapping[str, Any], application: dict[str, Any], found: Mapping[str, "Checked"]) -> bool:
    """Ask a ladder's routers what they decide by; False if that is not what was deployed.

    Args:
        address: of the cluster's dashboard, on whose host the server is looked for.
        details: what runs.
        application: its config.
        found: the ladders that were deployed, by application.
    """
    wanted = found.get(application["name"])
    if wanted is None:
        return True
    url = server_of(address, details, application)
    limit = time.monotonic() + CONFIRM_S
    while True:
        routers = routers_at(url)
        if routers is None:
            errors.print(f"[yellow]{escape(url)} cannot be reached from here to confirm the version[/yellow]")
            return True
        others = [each for each in routers if each["version"] != wanted.version]
        if not others:
            console.print(f"{len(routers)} router(s) decide by version {wanted.version}; see {url}/status", highlight=False)
            return True
        problem = next((each["problem"] for each in others if each["problem"]), None)
        if problem is not None or time.monotonic() > limit:
            errors.print(
                f"[bold red]{application['name']}: {len(others)} of {len(routers)} routers stay as they were[/bold red]"
            )
            errors.print(f"  {problem or 'they do not say why'}", markup=False, highlight=False)
            return False
        time.sleep(0.3)


def server_of(address: str, details: Mapping[str, Any], application: Mapping[str, Any]) -> str:
    """Where a ladder can be reached, as seen from the cluster's dashboard: its routers themselves, or else Serve."""
    from cascade.serving.address import Address as HostAndPort

    host = urlsplit(address).hostname or "127.0.0.1"
    listen = application["args"].get("listen")
    if listen is not None:
        return f"http://{HostAndPort.parse(listen).seen_from_outside(host)}"
    http = details.get("http_options") or {}
    serves = HostAndPort(http.get("host", "127.0.0.1") or "0.0.0.0", http.get("port", 8000))
    return f"http://{serves.seen_from_outside(host)}{(application.get('route_prefix') or '/').rstrip('/')}"


def routers_at(url: str) -> list[dict[str, Any]] | None:
    """What the routers of a ladder say of themselves; None if nobody can be asked."""
    try:
        asked = urllib.request.Request(f"{url}/status/figures", headers=key_header())
        with urllib.request.urlopen(asked, timeout=5) as response:
            routers: list[dict[str, Any]] = json.load(response)["routers"]["each"]
            return routers
    except (urllib.error.URLError, OSError, ValueError, KeyError):
        return None
