"""Every command of ``docs/clusters.md`` is one that its program takes, about things that its files have."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from click import Command, Group
from ray.scripts.scripts import cli as ray_cli
from ray.serve.scripts import cli as serve_cli

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "clusters.md").read_text()
PROGRAMS = ("ray", "serve", "docker", "kubectl", "curl")
BLOCKS = re.findall(rf"^    ((?:{'|'.join(PROGRAMS)}) .*)$", TEXT, re.MULTILINE)
INLINE = re.findall(rf"`((?:{'|'.join(PROGRAMS)}) [^`]+)`", TEXT)
MENTIONS = {"ray up", "kubectl apply", "docker build"}
"""Names of commands in running text, without what they work on."""
COMMANDS = sorted({*BLOCKS, *INLINE} - MENTIONS)


def manifests() -> dict[str, dict]:
    """Objects of the kustomization, by kind and name as kubectl writes them."""
    found = {}
    for path in (ROOT / "deployments" / "kuberay").glob("*.yaml"):
        for document in yaml.safe_load_all(path.read_text()):
            if "metadata" in document:
                found[f"{document['kind'].lower()}/{document['metadata']['name']}"] = document
    return found


def options(words: list[str]) -> dict[str, str]:
    """Options with a value, ``--name value`` or ``--name=value``."""
    found = {}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("-"):
            name, given, value = word.partition("=")
            found[name] = value if given else following
    return found


def check_click(group: Group, words: list[str]) -> None:
    """Raise unless the command takes these arguments; it does not run."""
    command = group.commands[words[0]]
    assert isinstance(command, Command)
    command.make_context(words[0], list(words[1:]))


def check_ray(words: list[str]) -> None:
    check_click(ray_cli, words)
    if words[0] != "get-auth-token":
        assert "cluster.yaml" in words
    if words[0] == "exec":
        for part in words[2].split(" && "):
            inner = shlex.split(part)
            assert inner[0] in {"cd", "serve"}
            if inner[0] == "serve":
                check_serve(inner[1:])


def check_serve(words: list[str]) -> None:
    check_click(serve_cli, words)
    assert all((ROOT / word).is_file() for word in words if word.endswith(".yaml"))


def check_docker(words: list[str]) -> None:
    images = {image["newName"] + ":" + image["newTag"] for image in kustomization()["images"]}
    if words[0] == "push":
        assert words[1] in images
        return
    assert words[0] == "build"
    given = options(words)
    recipe = (ROOT / given["-f"]).read_text()
    name, _, value = given["--build-arg"].partition("=")
    assert f"ARG {name}=" in recipe
    assert f"AS packages-{value}\n" in recipe
    assert given["-t"] in images
    assert given["-t"].endswith(f"-{value}")
    assert words[-1] == "."


def kustomization() -> dict:
    return yaml.safe_load((ROOT / "deployments" / "kuberay" / "kustomization.yaml").read_text())


def check_kubectl(words: list[str]) -> None:
    if words[0] == "apply":
        assert (ROOT / options(words)["-k"] / "kustomization.yaml").is_file()
    elif words[0] == "wait":
        assert words[-1] in manifests()
    else:
        assert words[0] == "port-forward"
        ports = manifests()[words[1]]["spec"]["ports"]
        assert int(words[2].rpartition(":")[2]) in {port["port"] for port in ports}


def check_curl(words: list[str]) -> None:
    assert any(f" {words[0].split(':')[2].split('/')[0]}:" in command for command in BLOCKS if "port-forward" in command)


CHECKS = {"ray": check_ray, "serve": check_serve, "docker": check_docker, "kubectl": check_kubectl, "curl": check_curl}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_one_that_its_program_takes(command):
    program, *words = shlex.split(command)
    CHECKS[program](words)


def test_the_way_is_there_from_beginning_to_end():
    assert [" ".join(command.split()[:2]) for command in BLOCKS] == [
        "ray get-auth-token",
        "ray up",
        "ray exec",
        "ray exec",
        "docker build",
        "docker build",
        "docker push",
        "docker push",
        "kubectl apply",
        "kubectl wait",
        "kubectl port-forward",
    ]


def test_every_file_that_is_named_exists():
    named = set(re.findall(r"`((?:deployments|docs)/[\w./-]*|cluster\.yaml|constraints\.txt)`", TEXT))
    named |= {f"docs/{link}" for link in re.findall(r"\]\(([\w./-]+\.md)\)", TEXT)}
    assert len(named) > 8
    for path in named:
        assert (ROOT / path).exists(), path


def test_the_numbers_of_the_page_are_those_of_the_files():
    spec = yaml.safe_load((ROOT / "deployments" / "cluster" / "cascade.yaml").read_text())
    scaling = spec["autoscaling"]
    assert f"`autoscaling.up_after_s: {scaling['up_after_s']}`, `down_after_s: {scaling['down_after_s']}`" in TEXT
    (router,) = (group for group in service_groups() if group["groupName"] == "routers")
    seconds = router["template"]["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1].split()[1]
    assert f"leaves it {seconds} s" in " ".join(TEXT.split())


def service_groups() -> list[dict]:
    return manifests()["rayservice/cascade"]["spec"]["rayClusterConfig"]["workerGroupSpecs"]
