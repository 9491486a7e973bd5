"""The composition root without a cluster: what is bound, from which artefacts, and a whole ladder in this process."""

import asyncio
import json
import socket
from types import SimpleNamespace

import numpy as np
import pytest
from asgi import started
from ladders import spec_document
from pydantic import ValidationError
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary

from cascade.assembly import Artefacts, read_artefacts, stage_configs
from cascade.calibration.artefact import Machine, ServiceProfile, StageService
from cascade.errors import CalibrationMismatch, ConfigError, SpecError
from cascade.loading import load_network
from cascade.models.fake_device import FakeDevice
from cascade.models.stage import StageResult
from cascade.rows import read_rows
from cascade.serving.address import NOWHERE
from cascade.serving.app import AppArgs, RouterReplica, build, spec_argument
from cascade.serving.environment import CALLS, FAST_PATH, GRPC, apply_local, free_port, slow_path_warning
from cascade.serving.local import cpus_needed, custom_resources, require_free, require_gpus, running
from cascade.serving.placing import INLINE_LIMIT_S, place_here
from cascade.serving.stage import ReplicaStage, StageReplica
from cascade.serving.stage_client import InlineStage, ThreadStage
from cascade.spec import Ladder, parse_spec
from cascade.spec_sections import RouterSpec
from cascade.wire.client import decode_answer, encode_request


class LocalHandle:
    """Stands where a Serve handle stands, in front of a replica that lives in this process."""

    def __init__(self, replica: StageReplica) -> None:
        self._replica = replica
        self.calls = 0

    def options(self, *, method_name: str, request_serialization: str, response_serialization: str):
        async def remote(inputs, call):
            self.calls += 1
            return await getattr(self._replica, method_name)(inputs)

        assert request_serialization == response_serialization == "pickle"
        return SimpleNamespace(remote=remote)


def changed(ladder: Ladder, change) -> Ladder:
    """The same ladder with changes to the fields of its spec."""
    return Ladder(ladder.spec.model_copy(update=change), ladder.root)


# -- the builder -------------------------------------------------------------------------------------------------------


def test_serve_validates_the_arguments_of_the_builder():
    for wrong in ({"bogus": 1}, {}, {"spec": 7}, {"spec": "x.yaml", "bogus": 1}):
        with pytest.raises(ValidationError):
            call_user_app_builder_with_args_if_necessary(build, wrong)


def test_serve_builds_the_application_from_plain_arguments(calibrated):
    application = call_user_app_builder_with_args_if_necessary(build, {"spec": str(calibrated)})
    assert application._bound_deployment.name == "router"


def test_an_application_has_a_router_and_one_deployment_for_each_placed_stage(calibrated):
    router = build(AppArgs(spec=str(calibrated)))._bound_deployment
    ladder, artefacts, handles, _, listen = router.init_args
    assert listen == NOWHERE
    assert ladder.spec.name == "colours"
    assert [s.name for s in artefacts.calibration.stages] == [s.name for s in artefacts.profile.stages]
    assert artefacts.market is not None
    assert handles[0] is None
    deployments = [handle._bound_deployment for handle in handles[1:]]
    assert [deployment.name for deployment in deployments] == ["fair", "fine"]
    assert [deployment.init_args[1] for deployment in deployments] == [1, 2]


def test_routers_listen_where_the_arguments_say(calibrated):
    router = build(AppArgs(spec=str(calibrated), listen="127.0.0.1:8080", listen_grpc="[::1]:9"))._bound_deployment
    assert router.init_args[-1] == (("127.0.0.1", 8080), ("::1", 9))
    with pytest.raises(ConfigError, match="host:port"):
        build(AppArgs(spec=str(calibrated), listen="8080"))


def test_a_deployment_gets_what_its_stage_asks_for(calibrated_copy):
    text = calibrated_copy.read_text().replace(
        "name: fine", "name: fine\n  replicas: 3\n  calls_per_replica: 4\n  num_gpus: 0.5\n  resources: {dear: 0.001}"
    )
    calibrated_copy.write_text(text + "router: {replicas: 2, num_cpus: 0.25, resources: {front: 1}}\n")
    router = build(spec_argument(calibrated_copy))._bound_deployment
    assert router.num_replicas == 2
    assert router.ray_actor_options == {"num_cpus": 0.25, "resources": {"front": 1.0}}
    fine = router.init_args[2][2]._bound_deployment
    assert fine.num_replicas == 3
    assert fine.ray_actor_options == {"num_cpus": 0.1, "num_gpus": 0.5, "resources": {"dear": 0.001}}
    # What both routers together may have out, and more than that, so that Serve never makes a call wait.
    assert fine.max_ongoing_requests > 2 * (3 * 4 // 2) / 3


def test_a_router_uses_its_share_of_the_places_of_a_stage_and_at_least_one(calibrated):
    ladder = Ladder.read(calibrated)
    _, profile = read_artefacts(ladder)

    def slots(replicas: int, calls: int, routers: int) -> list[int]:
        stages = tuple(s.model_copy(update={"replicas": replicas, "calls_per_replica": calls}) for s in ladder.spec.stages)
        router = ladder.spec.router.model_copy(update={"replicas": routers})
        spec = ladder.spec.model_copy(update={"stages": stages, "router": router})
        return [config.slots for config in stage_configs(spec, profile)]

    assert slots(replicas=3, calls=2, routers=1) == [1, 6, 6]
    assert slots(replicas=3, calls=2, routers=2) == [1, 3, 3]
    assert slots(replicas=1, calls=1, routers=4) == [1, 1, 1]


def test_a_stage_config_holds_what_was_measured_and_what_was_written(calibrated):
    ladder = Ladder.read(calibrated)
    _, profile = read_artefacts(ladder)
    for config, stage, measured in zip(stage_configs(ladder.spec, profile), ladder.spec.stages, profile.stages, strict=True):
        assert (config.cost, config.max_batch_size) == (stage.cost, stage.max_batch_size)
        assert (config.a_s, config.b_s) == (measured.a_s, measured.b_s)
        assert config.timeout_floor_s == stage.timeout_floor_s


# -- artefacts ---------------------------------------------------------------------------------------------------------


def test_a_ladder_without_artefacts_is_refused(calibrated_copy):
    artefacts = calibrated_copy.parent / "calibration"
    for name in ("service.json", "calibration.json"):
        (artefacts / name).unlink()
        with pytest.raises(ConfigError, match=f"{name}.*cascade profile"):
            build(AppArgs(spec=str(calibrated_copy)))


@pytest.mark.parametrize("name", ["calibration.json", "service.json"])
def test_an_artefact_of_other_weights_is_refused(calibrated_copy, name):
    path = calibrated_copy.parent / "calibration" / name
    document = json.loads(path.read_text())
    document["stages"][1]["digest"] = "0" * 64
    path.write_text(json.dumps(document))
    with pytest.raises(CalibrationMismatch, match="'fair'"):
        build(AppArgs(spec=str(calibrated_copy)))


def test_a_calibration_of_another_precision_is_refused(calibrated_copy):
    calibrated_copy.write_text(calibrated_copy.read_text().replace("name: fair", "name: fair\n  precision: bfloat16"))
    with pytest.raises(CalibrationMismatch, match="'fair'"):
        build(AppArgs(spec=str(calibrated_copy)))


def test_a_malformed_artefact_is_refused_by_field(calibrated_copy):
    path = calibrated_copy.parent / "calibration" / "calibration.json"
    path.write_text(path.read_text().replace('"temperature":', '"temperature": -1, "was":', 1))
    with pytest.raises(ConfigError, match=r"calibration\.json.*stages\.0\.temperature"):
        build(AppArgs(spec=str(calibrated_copy)))


def test_a_wrong_spec_is_refused(tmp_path):
    with pytest.raises(SpecError):
        build(AppArgs(spec=str(tmp_path / "none.yaml")))


# -- the whole ladder in this process ----------------------------------------------------------------------------------


@pytest.fixture
def replica(calibrated_ladder):
    """A router replica whose dear stages stand behind handles, and those handles."""
    handles = [None, *(LocalHandle(StageReplica(calibrated_ladder, index)) for index in (1, 2))]
    return RouterReplica(calibrated_ladder, Artefacts.read(calibrated_ladder), handles), handles[1:]


async def ask(client, ladder: Ladder, rows: np.ndarray, **parameters):
    field = ladder.spec.inputs[0].tensor
    body, headers = encode_request([(field, rows)], parameters={"timeout": 20_000_000, **parameters})
    response = await client.request("POST", "/v2/models/colours/infer", body, headers)
    assert response.status == 200, response.body
    return decode_answer(response.body, response.headers["inference-header-content-length"])


async def test_a_whole_ladder_answers_with_the_output_of_the_stage_that_it_names(replica, calibrated_ladder):
    router, handles = replica
    inputs, labels = read_rows(calibrated_ladder, calibrated_ladder.path(calibrated_ladder.spec.data.test))
    networks = {stage.name: load_network(calibrated_ladder, stage) for stage in calibrated_ladder.spec.stages}
    outputs = {name: network.run(inputs).logits.argmax(axis=1) for name, network in networks.items()}
    answered = []
    async with started(router.__serve_build_asgi_app__()) as client:
        for first in range(0, 60, 20):
            answers = await asyncio.gather(
                *(ask(client, calibrated_ladder, inputs["x"][i : i + 1]) for i in range(first, first + 20))
            )
            answered += [(a.parameters["cascade_stage"], int(a.outputs["label"][0])) for a in answers]
    assert [label for _, label in answered] == [int(outputs[stage][i]) for i, (stage, _) in enumerate(answered)]
    assert np.mean([label == labels[i] for i, (_, label) in enumerate(answered)]) > 0.9
    assert {stage for stage, _ in answered} >= {"rough"}
    assert sum(handle.calls for handle in handles) > 0


async def test_probabilities_of_an_answer_are_calibrated(replica, calibrated_ladder):
    router, _ = replica
    inputs, _ = read_rows(calibrated_ladder, calibrated_ladder.path(calibrated_ladder.spec.data.test))
    calibration, _ = read_artefacts(calibrated_ladder)
    first = calibrated_ladder.spec.stages[0]
    async with started(router.__serve_build_asgi_app__()) as client:
        answer = await ask(client, calibrated_ladder, inputs["x"][:8], cascade_max_cost=first.cost)
    logits = load_network(calibrated_ladder, first).run({"x": inputs["x"][:8]}).logits / calibration.stages[0].temperature
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(answer.outputs["probabilities"], expected, atol=1e-5)
    assert answer.parameters["cascade_stage"] == "rough"


async def test_a_replica_answers_a_batch_with_logits_and_its_own_time(calibrated_ladder):
    inputs = {"x": np.ones((3, 4), np.float32)}
    result = await ReplicaStage(LocalHandle(StageReplica(calibrated_ladder, 2)), "fine").run(inputs)
    assert isinstance(result, StageResult)
    expected = load_network(calibrated_ladder, calibrated_ladder.spec.stages[2]).run(inputs).logits
    np.testing.assert_array_equal(result.logits, expected)
    assert result.run_s > 0


async def test_a_replica_on_a_gpu_answers_the_same_and_says_when_its_device_is_lost(calibrated_ladder):
    inputs = {"x": np.ones((3, 4), np.float32)}
    # The model runs once to see its logits, three times at each of the buckets 1, 2, 4, 8, and at four sizes to warm up.
    replica = StageReplica(calibrated_ladder, 2, FakeDevice(lost_after=3 * 4 + 4 + 1))
    result = await ReplicaStage(LocalHandle(replica), "fine").run(inputs)
    expected = load_network(calibrated_ladder, calibrated_ladder.spec.stages[2]).run(inputs).logits
    np.testing.assert_allclose(result.logits, expected, rtol=1e-5)
    assert result.energy is None
    replica.check_health()
    with pytest.raises(RuntimeError, match="lost"):
        await ReplicaStage(LocalHandle(replica), "fine").run(inputs)
    with pytest.raises(RuntimeError, match="for good"):
        replica.check_health()


def test_a_short_stage_runs_in_the_event_loop(calibrated_ladder):
    (placed,) = place_here(calibrated_ladder, 0, Artefacts.read(calibrated_ladder).profile)
    assert isinstance(placed, InlineStage | ThreadStage)
    inline = InlineStage(load_network(calibrated_ladder, calibrated_ladder.spec.stages[0]))
    assert inline.run_now({"x": np.zeros((2, 4), np.float32)}).logits.shape == (2, 3)


def test_where_empty_texts_say_nothing_of_a_stages_time_its_profile_does(tmp_path):
    inputs = [{"name": "text", "datatype": "BYTES"}]
    model = {"factory": "cascade.models.fakes:ChecksumNet", "args": {"classes": 2}}
    stage = {"name": "s0", "cost": 1.0, "placement": "router", "max_batch_size": 8, "model": model}
    ladder = Ladder(parse_spec({**spec_document(1, inputs=inputs), "stages": [stage]}), tmp_path)

    def profile(b_s: float) -> ServiceProfile:
        measured = StageService(name="s0", digest="none", a_s=0.0, b_s=b_s, measured=())
        machine = Machine(kind="test", cpu_count=1, torch_threads=1)
        return ServiceProfile(format_version=1, created_by="test", ladder="fake", machine=machine, stages=(measured,))

    (placed,) = place_here(ladder, 0, profile(2 * INLINE_LIMIT_S / 8))
    assert isinstance(placed, ThreadStage)


async def test_a_stage_in_a_thread_answers_as_one_in_the_event_loop(calibrated_ladder):
    network = load_network(calibrated_ladder, calibrated_ladder.spec.stages[0])
    inputs = {"x": np.ones((2, 4), np.float32)}
    threaded = await ThreadStage(network).run(inputs)
    np.testing.assert_array_equal(threaded.logits, InlineStage(network).run_now(inputs).logits)


# -- the machine around it ---------------------------------------------------------------------------------------------


def test_a_server_on_this_machine_sets_what_the_operator_has_not_set():
    first, second = FAST_PATH
    environ = {first: "0", "OTHER": "x"}
    apply_local(environ, through_serve=True)
    assert (environ[first], environ[second], environ["OTHER"]) == ("0", FAST_PATH[second], "x")
    assert environ.items() >= GRPC.items()
    again = dict(environ)
    apply_local(again, through_serve=True)
    assert again == environ


def test_a_server_whose_routers_listen_has_no_use_for_a_proxy():
    environ = {}
    apply_local(environ)
    assert {name: environ.get(name) for name in FAST_PATH} == dict.fromkeys(FAST_PATH) | CALLS
    assert slow_path_warning(environ, listens=True) is None
    assert slow_path_warning(environ) is not None


def test_a_server_on_this_machine_gets_a_token_of_its_own_unless_the_operator_chose():
    one, two, chosen = {}, {}, {"RAY_AUTH_MODE": "disabled"}
    for environ in (one, two, chosen):
        apply_local(environ)
    assert one["RAY_AUTH_MODE"] == "token"
    assert one["RAY_AUTH_TOKEN"] != two["RAY_AUTH_TOKEN"]
    assert chosen["RAY_AUTH_MODE"] == "disabled"
    assert "RAY_AUTH_TOKEN" not in chosen


def test_a_ray_without_the_fast_path_is_told_what_is_missing():
    assert slow_path_warning(FAST_PATH) is None
    first, second = FAST_PATH
    warning = slow_path_warning({first: FAST_PATH[first], second: "0"})
    assert second in warning
    assert first not in warning


def test_a_port_that_is_taken_is_told_before_ray_starts():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=str(port)):
            require_free("127.0.0.1", port)
        with pytest.raises(ConfigError, match="choose another --grpc-port"):
            require_free("127.0.0.1", port, "--grpc-port")
    require_free("127.0.0.1", port)


def test_a_ladder_that_reserves_more_gpus_than_there_are_is_refused_before_ray_starts(calibrated_ladder):
    require_gpus(calibrated_ladder.spec, 0)
    stages = tuple(stage.model_copy(update={"num_gpus": 0.25, "replicas": 2}) for stage in calibrated_ladder.spec.stages)
    spec = changed(calibrated_ladder, {"stages": stages}).spec
    require_gpus(spec, 2)
    with pytest.raises(ConfigError, match=r"1\.5 GPUs, this machine has 1"):
        require_gpus(spec, 1)


def test_http_and_grpc_do_not_share_a_port(calibrated):
    port = free_port()
    with pytest.raises(ConfigError, match=f"both listen on port {port}"), running(calibrated, port=port, grpc_port=port):
        pass


def test_the_cpus_of_a_ladder_are_those_of_its_replicas_rounded_up(calibrated_ladder):
    assert cpus_needed(calibrated_ladder.spec) == 2
    stages = tuple(stage.model_copy(update={"num_cpus": 1.0, "replicas": 2}) for stage in calibrated_ladder.spec.stages)
    assert cpus_needed(changed(calibrated_ladder, {"stages": stages}).spec) == 5


def test_one_machine_has_the_custom_resources_of_all_replicas_that_may_be(calibrated_ladder):
    rough, fair, fine = calibrated_ladder.spec.stages
    assert custom_resources(calibrated_ladder.spec) == {}
    fair = fair.model_copy(update={"resources": {"small": 0.5}, "replicas": 3})
    fine = fine.model_copy(update={"resources": {"small": 0.25, "big": 1.0}, "min_replicas": 1, "max_replicas": 4})
    router = RouterSpec(replicas=2, resources={"front": 1.0})
    spec = changed(calibrated_ladder, {"stages": (rough, fair, fine), "router": router}).spec
    assert custom_resources(spec) == {"front": 2.0, "small": 2.5, "big": 4.0}
