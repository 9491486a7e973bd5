"""Serve config files read strictly: Serve itself ignores keys that it does not know, and here every one of them is named."""

import pytest
import yaml
from ladders import fake_ladder
from ray.serve.schema import ServeDeploySchema

from cascade.errors import ConfigError
from cascade.serving.serve_file import app_args, check_deployments, check_document
from cascade.spec_errors import read_mapping


def document(**application):
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": 8000},
        "applications": [
            {
                "name": "fake",
                "route_prefix": "/",
                "import_path": "cascade.serving.app:build",
                "args": {"spec": "cascade.yaml"},
                "deployments": [
                    {"name": "router", "num_replicas": 2, "user_config": {"version": "4f2a"}},
                    {
                        "name": "s1",
                        "ray_actor_options": {"num_cpus": 1, "resources": {"big": 0.1}},
                        "autoscaling_config": {"min_replicas": 1, "max_replicas": 3},
                    },
                ],
                **application,
            }
        ],
    }


def test_a_file_that_says_nothing_unknown_passes():
    check_document(document(), "serve.yaml")


MISSPELT = {
    "http_option": lambda d: d.update(http_option={"port": 1}),
    "http_options.prot": lambda d: d["http_options"].update(prot=1),
    "grpc_options.ports": lambda d: d.update(grpc_options={"port": 1, "ports": 2}),
    "applications.fake.argz": lambda d: d["applications"][0].update(argz={}),
    "applications.fake.logging_config.lvl": lambda d: d["applications"][0].update(logging_config={"lvl": "INFO"}),
    "applications.fake.deployments.router.max_surge_percents": (
        lambda d: d["applications"][0]["deployments"][0].update(max_surge_percents=1)
    ),
    "applications.fake.deployments.s1.ray_actor_options.num_cpu": (
        lambda d: d["applications"][0]["deployments"][1]["ray_actor_options"].update(num_cpu=1)
    ),
    "applications.fake.deployments.s1.autoscaling_config.min_replica": (
        lambda d: d["applications"][0]["deployments"][1]["autoscaling_config"].update(min_replica=1)
    ),
}


@pytest.mark.parametrize("where", MISSPELT)
def test_a_key_that_serve_would_ignore_is_named_at_every_level(where):
    wrong = document()
    MISSPELT[where](wrong)
    with pytest.raises(ConfigError) as caught:
        check_document(wrong, "serve.yaml")
    assert caught.value.detail == f"serve.yaml: {where}: unknown field, which Serve would ignore"


def test_serve_itself_takes_such_a_file_without_a_word():
    wrong = document()
    MISSPELT["applications.fake.deployments.router.max_surge_percents"](wrong)
    ServeDeploySchema.model_validate(wrong)


def test_all_unknown_keys_are_named_at_once():
    wrong = document()
    for change in MISSPELT.values():
        change(wrong)
    with pytest.raises(ConfigError) as caught:
        check_document(wrong, "serve.yaml")
    assert len(caught.value.detail.splitlines()) == len(MISSPELT)


def test_what_serve_refuses_is_refused_here_with_the_field():
    with pytest.raises(ConfigError, match=r"serve\.yaml: applications\.0\.deployments\.0\.num_replicas"):
        check_document(document(deployments=[{"name": "router", "num_replicas": 0}]), "serve.yaml")


def test_arguments_are_those_of_the_builder():
    with pytest.raises(ConfigError, match=r"here\.args: lissen: unknown field"):
        app_args({"args": {"spec": "a", "lissen": "b"}}, "here")


def test_deployments_are_those_of_the_ladder():
    spec = fake_ladder(2).spec
    check_deployments(document()["applications"][0], spec, "here")
    with pytest.raises(ConfigError, match=r"here\.deployments: no deployment 's9'; the ladder has router, s0, s1"):
        check_deployments({"deployments": [{"name": "s9"}]}, spec, "here")
    with pytest.raises(ConfigError, match=r"user_config of router: versions: unknown field"):
        check_deployments(
            {"deployments": [{"name": "router", "user_config": {"version": "a", "versions": "b"}}]}, spec, "here"
        )
    with pytest.raises(ConfigError, match=r"s1\.user_config: only router takes one"):
        check_deployments({"deployments": [{"name": "s1", "user_config": {"version": "a"}}]}, spec, "here")


@pytest.mark.parametrize(
    ("text", "words"), [("a: [", "not valid YAML"), ("[1]", "expected a mapping"), (None, "No such file")]
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, text, words):
    path = tmp_path / "serve.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_mapping(path)


def test_the_shipped_files_pass(pytestconfig):
    files = sorted(pytestconfig.rootpath.glob("deployments/*/serve.yaml"))
    assert files
    for path in files:
        check_document(yaml.safe_load(path.read_text()), path.name)
