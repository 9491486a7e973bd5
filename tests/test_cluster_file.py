"""``cluster.yaml`` without a cloud: Ray's own validation, what its commands do in a shell, and what its nodes have room for.

The commands run in bash with a home folder that looks as Ray's file mounts would leave it; the programs that they call only
write down how they were called. Nothing here reaches a network.
"""

import json
import stat
import subprocess
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start
from ray.serve.schema import ServeDeploySchema

from cascade.serving.app import AppArgs
from cascade.serving.environment import FAST_PATH, GRPC
from cascade.spec import Ladder, StageSpec

ROOT = Path(__file__).resolve().parent.parent
CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())
SERVE = yaml.safe_load((ROOT / "deployments" / "cluster" / "serve.yaml").read_text())
LADDER = Ladder.read(ROOT / "deployments" / "cluster" / "cascade.yaml")
NODE_TYPES = {name: kind for name, kind in CLUSTER["available_node_types"].items() if name != CLUSTER["head_node_type"]}

RECORDER = """#!/bin/bash
printf '%s\\0' "$(basename "$0")" "$@" > "$CALLS/$(ls "$CALLS" | wc -l)"
env -0 > "$CALLS.env"
"""


def node_types_of(resources: dict[str, float]) -> list[str]:
    """Node types that have what a replica reserves."""
    return [name for name, kind in NODE_TYPES.items() if resources and resources.keys() <= kind["resources"].keys()]


def least_and_most(stage: StageSpec) -> tuple[int, int]:
    return (stage.min_replicas or stage.replicas, stage.max_replicas or stage.replicas)


class Node:
    """A node's home folder, and a shell in it."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.calls = folder / "calls"
        for made in (self.calls, self.home / "venv" / "bin", folder / "bin"):
            made.mkdir(parents=True)
        for program in (*(self.home / "venv" / "bin" / name for name in ("ray", "python")), folder / "bin" / "sudo"):
            program.write_text(RECORDER)
            program.chmod(program.stat().st_mode | stat.S_IXUSR)
        for remote, local in CLUSTER["file_mounts"].items():
            target = Path(remote.replace("~", str(self.home), 1))
            target.parent.mkdir(parents=True, exist_ok=True)
            if not local.startswith("~"):
                target.symlink_to(ROOT / local)
        self._clean = {"HOME": str(self.home), "PATH": f"{folder / 'bin'}:/usr/bin:/bin", "CALLS": str(self.calls)}
        self._clean["RAY_HEAD_IP"] = "10.0.0.1"

    def run(self, command: str) -> list[list[str]]:
        """What a command called, program and arguments; it must succeed."""
        before = len(list(self.calls.iterdir()))
        shell = ["bash", "-c", f"set -o pipefail; ({command})"]
        done = subprocess.run(shell, cwd=self.home, env=self._clean, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        called = sorted(self.calls.iterdir(), key=lambda path: int(path.name))[before:]
        return [path.read_text().rstrip("\0").split("\0") for path in called]

    def added_environment(self) -> dict[str, str]:
        """Variables that the last program was called with, beyond those of the shell itself."""
        pairs = dict(pair.split("=", 1) for pair in Path(f"{self.calls}.env").read_text().rstrip("\0").split("\0"))
        return {name: value for name, value in pairs.items() if name not in {*self._clean, "PWD", "OLDPWD", "SHLVL", "_"}}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_ray_takes_the_file_as_it_is():
    config = prepare_config(json.loads(json.dumps(CLUSTER)))
    validate_config(config)
    assert config["available_node_types"]["head"]["max_workers"] == 0
    with pytest.raises(Exception, match="gpu_small"):
        validate_config(prepare_config({**CLUSTER, "gpu_small": 1}))


def test_every_file_that_is_mounted_exists():
    local = [path for path in CLUSTER["file_mounts"].values() if not path.startswith("~")]
    assert [path for path in local if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("kind", ["head", "worker"])
def test_ray_starts_with_exactly_the_fast_path_and_a_token(node, kind):
    stop, command = CLUSTER[f"{kind}_start_ray_commands"]
    assert node.run(stop) == [["ray", "stop"]]
    ((program, subcommand, *options),) = node.run(command)
    assert (program, subcommand) == ("ray", "start")
    assert node.added_environment() == FAST_PATH | GRPC | {"RAY_AUTH_MODE": "token"}
    parsed = start.make_context("start", options).params
    assert parsed["head"] == (kind == "head")
    assert parsed["address"] == (None if kind == "head" else "10.0.0.1:6379")


def test_ray_starts_where_the_paths_of_the_deployment_file_begin(node):
    for kind in ("head", "worker"):
        folder, *_ = CLUSTER[f"{kind}_start_ray_commands"][-1].split(" && ")
        ((_, *_),) = node.run(f"{folder} && test -f {SERVE['applications'][0]['args']['spec']} && ~/venv/bin/ray here")


def test_setting_a_node_up_installs_this_package_with_the_pinned_versions(node):
    commands = CLUSTER["initialization_commands"] + CLUSTER["setup_commands"] + CLUSTER["head_setup_commands"]
    called = [call for command in commands for call in node.run(command)]
    installs = [call for call in called if call[:4] == ["python", "-m", "pip", "install"]]
    first, second = installs
    assert first[4:] == ["-q", "-c", f"{node.home}/cascade/constraints.txt", "-e", f"{node.home}/cascade"]
    assert second[4:] == ["-q", "boto3"]
    for path in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "cascade/__init__.py"):
        assert (node.home / "cascade" / path).exists(), path
    # Twice is as good as once: `ray up` runs them again.
    for command in CLUSTER["setup_commands"]:
        node.run(command)
    profile = (node.home / ".bashrc").read_text()
    assert profile.count("RAY_AUTH_MODE=token") == 1
    assert node.run(f"{profile.strip()} && ray status") == [["ray", "status"]]
    assert node.added_environment() == {"RAY_AUTH_MODE": "token"}


def test_every_replica_has_a_node_type_to_run_on_and_only_one():
    stages = [stage for stage in LADDER.spec.stages if stage.placement == "replica"]
    homes = [node_types_of(stage.resources) for stage in stages]
    assert all(len(each) == 1 for each in homes)
    assert node_types_of(LADDER.spec.router.resources) == ["routers"]
    assert {name for (name,) in homes} | {"routers"} == set(NODE_TYPES)
    # The order of the file is that of rising price, and dearer stages stand on dearer nodes.
    order = [list(NODE_TYPES).index(name) for (name,) in homes]
    assert order == sorted(order)


def test_the_node_types_have_room_for_the_fewest_and_the_most_replicas():
    for name, kind in NODE_TYPES.items():
        pinned = [stage for stage in LADDER.spec.stages if node_types_of(stage.resources) == [name]]
        if pinned:  # one device on each of these instance types
            least, most = (sum(least_and_most(stage)[place] * stage.num_gpus for stage in pinned) for place in (0, 1))
        else:
            router = LADDER.spec.router
            least = most = router.replicas * router.resources["router"] / kind["resources"]["router"]
        assert (kind["min_workers"], kind["max_workers"]) == (-(-least // 1), -(-most // 1)), name
    assert CLUSTER["max_workers"] == sum(kind["max_workers"] for kind in NODE_TYPES.values())
    assert CLUSTER["available_node_types"]["head"]["resources"] == {"CPU": 0}


def test_the_ports_of_the_deployment_file_are_open_and_no_others():
    schema = ServeDeploySchema.model_validate(SERVE)
    args = AppArgs.model_validate(schema.applications[0].args)
    wanted = {schema.http_options.port, schema.grpc_options.port}
    wanted |= {int(str(address).rpartition(":")[2]) for address in (args.listen, args.listen_grpc)}
    rules = CLUSTER["provider"]["security_group"]["IpPermissions"]
    assert {port for rule in rules for port in range(rule["FromPort"], rule["ToPort"] + 1)} == wanted


def test_all_nodes_have_one_image_so_that_all_have_one_python():
    images = {kind["node_config"]["ImageId"] for kind in CLUSTER["available_node_types"].values()}
    assert len(images) == 1
