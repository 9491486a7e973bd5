"""What `cascade deploy` sends and how it follows it, on a cluster that plays a script; and the command itself around it."""

import copy

import pytest
import yaml
from typer.testing import CliRunner

from cascade.assembly import Artefacts
from cascade.cli import app
from cascade.cli import deploy as command
from cascade.errors import ConfigError
from cascade.serving.deploying import Checked, application_of, change, follow, merged, progress_of, with_digests
from cascade.serving.environment import free_port
from cascade.spec import Ladder
from cascade.versions import build_digest


def application(name="fake", **args):
    return application_of("/cascade.yaml", name, "/", **args)


def running(config, status="RUNNING", deployments=None, message=""):
    return {"deployed_app_config": config, "status": status, "message": message, "deployments": deployments or {}}


def replicas(ready, wanted, status="HEALTHY", message=""):
    states = ["RUNNING"] * ready + ["STARTING"] * (wanted - ready)
    return {
        "status": status,
        "message": message,
        "target_num_replicas": wanted,
        "replicas": [{"state": state} for state in states],
    }


def digests(build="b1", version="v1"):
    return Checked(None, build, version)


# -- the config --------------------------------------------------------------------------------------------------------


def test_build_and_version_go_where_replicas_and_routers_read_them():
    config = with_digests(application(listen="0.0.0.0:8010"), digests())
    assert config["args"] == {"spec": "/cascade.yaml", "listen": "0.0.0.0:8010", "build": "b1"}
    assert config["deployments"] == [{"name": "router", "user_config": {"version": "v1"}}]


def test_what_a_file_says_of_deployments_stays():
    given = application() | {"deployments": [{"name": "s1", "num_replicas": 3}, {"name": "router", "num_replicas": 2}]}
    before = copy.deepcopy(given)
    config = with_digests(given, digests())
    assert config["deployments"] == [
        {"name": "s1", "num_replicas": 3},
        {"name": "router", "num_replicas": 2, "user_config": {"version": "v1"}},
    ]
    assert given == before


def test_other_applications_are_kept_as_they_were_deployed():
    other, old = application("other"), application(build="b0")
    details = {"applications": {"other": running(other), "fake": running(old), "by_hand": running(None)}}
    config, kept = merged({"applications": [application()]}, details)
    assert config["applications"] == [application(), other]
    assert kept == ["other"]


def test_where_serve_listens_stays_unless_the_file_says_otherwise():
    details = {
        "applications": {"other": running(application("other"))},
        "http_options": {"port": 9000},
        "proxy_location": "HeadOnly",
    }
    config, _ = merged({"applications": [], "proxy_location": "EveryNode"}, details)
    assert (config["http_options"], config["proxy_location"]) == ({"port": 9000}, "EveryNode")
    assert "http_options" not in merged({"applications": []}, {})[0]


@pytest.mark.parametrize(
    ("build", "version", "expected"), [("b1", "v1", "none"), ("b1", "v2", "live"), ("b2", "v2", "replicas")]
)
def test_serve_restarts_replicas_for_another_build_alone(build, version, expected):
    details = {"applications": {"fake": running(with_digests(application(), digests()))}}
    assert change(with_digests(application(), digests(build, version)), details) == expected


def test_an_application_that_is_not_there_is_new():
    assert change(application(), {"applications": {}}) == "new"
    assert change(application(), {"applications": {"fake": running(None)}}) == "new"


# -- following it ------------------------------------------------------------------------------------------------------


class Script:
    """A cluster that shows one state after another, the last for good."""

    def __init__(self, *states):
        self.states, self.sent, self.now = list(states), [], 0.0

    def get_serve_details(self):
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return {"applications": state}

    def deploy_applications(self, config):
        self.sent.append(config)

    def sleep(self, seconds):
        self.now += seconds


def followed(script, limit_s=60.0, names=("fake",)):
    return list(follow(script, names, limit_s, clock=lambda: script.now, sleep=script.sleep))


def test_it_is_followed_until_every_deployment_is_healthy():
    config = application()
    half = running(config, "DEPLOYING", {"router": replicas(1, 1), "s1": replicas(1, 2, "UPDATING", "1 replica to start")})
    done = running(config, deployments={"router": replicas(1, 1), "s1": replicas(2, 2)})
    seen = followed(Script({}, {"fake": half}, *[{"fake": half}] * 6, {"fake": done}))
    assert seen[0][0].status == "NOT_STARTED"
    assert seen[1][0].deployments == {"router": (1, 1), "s1": (1, 2)}
    assert list(seen[1][0].messages) == ["s1: UPDATING: 1 replica to start"]
    assert seen[-1][0].done


def test_that_it_still_runs_right_after_sending_means_nothing_yet():
    done = running(application(), deployments={"router": replicas(1, 1)})
    updating = running(application(), "DEPLOYING", {"router": replicas(1, 1, "UPDATING")})
    seen = followed(Script({"fake": done}, *[{"fake": updating}] * 5, {"fake": done}))
    assert [each[0].done for each in seen] == [True, False, False, False, False, False, True]


def test_a_failure_ends_it_with_what_serve_says():
    failed = running(application(), "DEPLOY_FAILED", message="CalibrationMismatch: 'fair'")
    seen = followed(Script({"fake": failed}))
    assert len(seen) == 1
    assert seen[0][0].failed
    assert seen[0][0].messages == ["CalibrationMismatch: 'fair'"]


def test_it_ends_after_its_time():
    waiting = running(application(), "DEPLOYING", {"s1": replicas(0, 1, "UPDATING", "no node has 4 CPUs")})
    script = Script({"fake": waiting})
    seen = followed(script, limit_s=5.0)
    assert script.now == pytest.approx(5.0, abs=1.0)
    assert not seen[-1][0].done


def test_all_applications_must_run():
    done = running(application(), deployments={})
    script = Script({"fake": done, "other": running(application("other"), "DEPLOYING")})
    assert not all(each.done for each in followed(script, 3.0, ("fake", "other"))[-1])


def test_an_application_without_a_trace_has_not_started():
    assert progress_of("fake", {}).status == "NOT_STARTED"


# -- the command -------------------------------------------------------------------------------------------------------


class Ready:
    """A cluster on which applications run as soon as they have been sent."""

    def __init__(self, status="RUNNING", message=""):
        self.applications, self.sent = {}, []
        self._status, self._message = status, message

    def get_serve_details(self):
        return {"applications": self.applications, "http_options": {"host": "127.0.0.1", "port": free_port()}}

    def deploy_applications(self, config):
        self.sent.append(config)
        for each in config["applications"]:
            self.applications[each["name"]] = running(each, self._status, {"router": replicas(1, 1)}, self._message)


def deployed(cluster, file, **options):
    """What the command does, but for connecting and for waiting in real time."""
    document, found = command.read(file, **options)
    config = command.announced(document, found, cluster.get_serve_details())
    names = [each["name"] for each in document["applications"]]
    times = iter(range(10**6))
    runs = command.sent(cluster, "http://head", config, names, timeout_s=1e-9, sleep=lambda _: next(times))
    return runs and command.confirmed("http://127.0.0.1", cluster.get_serve_details(), document, found)


def deploy(*arguments):
    return CliRunner().invoke(app, ["deploy", *map(str, arguments)], env={"COLUMNS": "200"})


def test_a_ladder_is_deployed_under_its_name_with_its_digests(calibrated, capsys):
    cluster = Ready()
    assert deployed(cluster, calibrated, listen="0.0.0.0:8010", surge=False)
    ladder = Ladder.read(calibrated)
    artefacts = Artefacts.read(ladder)
    (config,) = cluster.sent
    build = build_digest(ladder, artefacts.digests)
    assert config["applications"] == [
        {
            "name": "colours",
            "route_prefix": "/",
            "import_path": "cascade.serving.app:build",
            "args": {"spec": str(calibrated.resolve()), "listen": "0.0.0.0:8010", "surge": False, "build": build},
            "deployments": [{"name": "router", "user_config": {"version": artefacts.version}}],
        }
    ]
    output = capsys.readouterr().out
    assert f"colours (build {build}, version {artefacts.version}): is new" in output
    assert "running colours: router 1/1" in output


def test_deploying_the_same_again_says_so(calibrated, capsys):
    cluster = Ready()
    assert deployed(cluster, calibrated)
    assert deployed(cluster, calibrated)
    assert "is deployed like this already" in capsys.readouterr().out


def test_a_serve_file_is_taken_with_all_it_says(calibrated, tmp_path):
    cluster, file = Ready(), tmp_path / "serve.yaml"
    given = application_of(str(calibrated), "mine", "/mine")
    other = {"name": "other", "route_prefix": "/other", "import_path": "somebody:app"}
    file.write_text(yaml.safe_dump({"http_options": {"port": 9000}, "applications": [given, other]}))
    assert deployed(cluster, file)
    (config,) = cluster.sent
    assert config["http_options"] == {"port": 9000}
    assert config["applications"][0]["args"].keys() == {"spec", "build"}
    assert config["applications"][1] == other


def test_a_cluster_that_gives_up_is_quoted(calibrated, capsys):
    assert not deployed(Ready("DEPLOY_FAILED", "no module named nowhere"), calibrated)
    assert "no module named nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "calibration" / "calibration.json").unlink(), "calibration.json"),
        (lambda folder: (folder / "weights" / "fair.safetensors").write_bytes(b"x"), "fair"),
        (lambda folder: (folder / "cascade.yaml").write_text("name: x"), "inputs"),
    ],
)
def test_nothing_is_sent_that_does_not_pass_the_check(calibrated_copy, change, words):
    change(calibrated_copy.parent)
    cluster = Ready()
    with pytest.raises(ConfigError, match=words):
        deployed(cluster, calibrated_copy)
    assert cluster.sent == []


def test_options_that_a_serve_file_answers_itself_are_refused(calibrated, tmp_path):
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump({"applications": [application_of(str(calibrated), "mine", "/")]}))
    with pytest.raises(ConfigError, match="--listen"):
        deployed(Ready(), file, listen="0.0.0.0:1")


def test_a_serve_file_without_a_ladder_is_not_ours(tmp_path):
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump({"applications": [{"name": "other", "import_path": "somebody:app"}]}))
    with pytest.raises(ConfigError, match="use `serve deploy`"):
        deployed(Ready(), file)


def test_a_dry_run_needs_no_cluster_and_prints_the_config(calibrated):
    result = deploy(calibrated, "--dry-run", "--address", f"http://127.0.0.1:{free_port()}")
    assert result.exit_code == 0, result.output
    assert "nothing is known of what runs there" in " ".join(result.output.split())
    assert "user_config:" in result.output


def test_without_a_cluster_the_exit_code_is_2(calibrated):
    result = deploy(calibrated, "--address", f"http://127.0.0.1:{free_port()}")
    assert result.exit_code == 2
    assert "Not reachable" in result.output
