"""A router replica that is told of another version: what it takes up, what it refuses, and that it never breaks over it."""

import asyncio

import numpy as np
import pytest
import yaml
from asgi import started
from safetensors.torch import load_file, save_file
from test_app import LocalHandle
from typer.testing import CliRunner

from cascade.assembly import Artefacts
from cascade.cli import app
from cascade.errors import ConfigError
from cascade.rows import read_rows
from cascade.serving.app import AppArgs, RouterReplica, build
from cascade.serving.renewal import read_config
from cascade.serving.stage import StageReplica
from cascade.spec import Ladder
from cascade.versions import build_digest
from cascade.wire.client import decode_answer, encode_request


@pytest.fixture
def served(calibrated_copy):
    """A router replica over real networks, and the spec that it was made from."""
    ladder = Ladder.read(calibrated_copy)
    handles = [None, *(LocalHandle(StageReplica(ladder, index)) for index in (1, 2))]
    return RouterReplica(ladder, Artefacts.read(ladder), handles), calibrated_copy


async def ask(client, spec, **parameters):
    ladder = Ladder.read(spec)
    inputs, _ = read_rows(ladder, ladder.path(ladder.spec.data.test))
    body, headers = encode_request(
        [(ladder.spec.inputs[0].tensor, inputs["x"][:20])], parameters={"timeout": 20_000_000, **parameters}
    )
    response = await client.request("POST", "/v2/models/colours/infer", body, headers)
    assert response.status == 200, response.body
    return decode_answer(response.body, response.headers["inference-header-content-length"])


def change(spec, update) -> str:
    """Change the spec; the version that it is now."""
    document = yaml.safe_load(spec.read_text())
    update(document)
    spec.write_text(yaml.safe_dump(document))
    return Artefacts.read(Ladder.read(spec)).version


def dear(document):
    for stage in document["stages"][1:]:
        stage["base_price"] = 0.99


async def test_new_prices_and_calibrations_are_taken_up_while_it_runs(served):
    router, spec = served
    async with started(router.__serve_build_asgi_app__()) as client:
        before = await ask(client, spec)
        version = change(spec, dear)
        await router.reconfigure({"version": version})
        after = await ask(client, spec)
        figures = (await client.get("/status/figures")).json()
    assert before.parameters["cascade_version"] != version == after.parameters["cascade_version"]
    assert before.parameters["cascade_cost"] > after.parameters["cascade_cost"], "no visit is worth the new prices"
    assert figures["routers"]["each"][0] | {"version": version, "problem": None} == figures["routers"]["each"][0]


async def test_requests_of_both_versions_are_answered_side_by_side(served):
    router, spec = served
    async with started(router.__serve_build_asgi_app__()) as client:
        old = [asyncio.ensure_future(ask(client, spec)) for _ in range(5)]
        await asyncio.sleep(0)
        version = change(spec, dear)
        new = []
        for _ in range(5):
            await router.reconfigure({"version": version})
            new.append(await ask(client, spec))
        versions = {answer.parameters["cascade_version"] for answer in await asyncio.gather(*old)}
    assert version not in versions
    assert {answer.parameters["cascade_version"] for answer in new} == {version}


async def stays(router, spec, config) -> str:
    """The version that a router stays at, and what it says is wrong."""
    async with started(router.__serve_build_asgi_app__()) as client:
        before = (await ask(client, spec)).parameters["cascade_version"]
        await router.reconfigure(config)
        assert (await ask(client, spec)).parameters["cascade_version"] == before
        return (await client.get("/status/figures")).json()["routers"]["each"][0]["problem"]


async def test_files_of_another_version_are_refused_and_it_stays_as_it_is(served):
    router, spec = served
    change(spec, dear)
    assert "version 0123 was asked for, the files" in await stays(router, spec, {"version": "0123"})


async def test_what_needs_new_replicas_is_refused_by_its_field(served):
    router, spec = served

    def larger(document):
        document["stages"][2]["max_batch_size"] = 4

    version = change(spec, larger)
    assert "stages.fine.max_batch_size cannot change" in await stays(router, spec, {"version": version})


async def test_a_calibration_of_other_weights_is_refused(served):
    router, spec = served
    weights = spec.parent / "weights" / "fine.safetensors"
    save_file({name: tensor * 1.001 for name, tensor in load_file(weights).items()}, weights)
    for command in ("profile", "calibrate"):
        result = CliRunner().invoke(app, [command, str(spec)])
        assert result.exit_code == 0, result.output
    version = Artefacts.read(Ladder.read(spec)).version
    assert "belongs to other weights of stage 'fine'" in await stays(router, spec, {"version": version})


async def test_broken_files_are_refused_and_mended_ones_taken_up(served):
    router, spec = served
    ladder = Ladder.read(spec)
    whole = ladder.calibration_path.read_text()
    version = change(spec, dear)
    ladder.calibration_path.write_text("{")
    async with started(router.__serve_build_asgi_app__()) as client:
        await router.reconfigure({"version": version})
        assert "calibration.json" in (await client.get("/status/figures")).json()["routers"]["each"][0]["problem"]
        ladder.calibration_path.write_text(whole)
        await router.reconfigure({"version": version})
        assert (await client.get("/status/figures")).json()["routers"]["each"][0]["problem"] is None
        assert (await ask(client, spec)).parameters["cascade_version"] == version


async def test_a_config_that_nobody_knows_is_refused(served):
    router, spec = served
    assert "verzion: unknown field" in await stays(router, spec, {"verzion": "1"})
    with pytest.raises(ConfigError, match="user_config of router: version"):
        read_config({})


async def test_a_version_that_came_before_the_start_is_what_it_starts_with(served):
    router, spec = served
    version = change(spec, dear)
    await router.reconfigure({"version": version})
    async with started(router.__serve_build_asgi_app__()) as client:
        assert (await ask(client, spec)).parameters["cascade_version"] == version


async def test_a_renewal_reports_counters_that_only_grow(served):
    router, spec = served
    async with started(router.__serve_build_asgi_app__()) as client:
        seen = []
        for price in np.linspace(0.1, 0.5, 3):
            await ask(client, spec)
            seen.append((await client.get("/v2/models/colours/stats")).json()["model_stats"][0]["inference_count"])
            version = change(spec, lambda document, price=price: document["stages"][1].update(base_price=float(price)))
            await router.reconfigure({"version": version})
    assert seen == [20, 40, 60]


def test_a_build_that_was_asked_for_is_the_only_one_that_is_built(calibrated_copy):
    ladder = Ladder.read(calibrated_copy)
    build(AppArgs(spec=str(calibrated_copy), build=build_digest(ladder)))
    with pytest.raises(ConfigError, match=r"build 0123 was asked for, the files of .* are build"):
        build(AppArgs(spec=str(calibrated_copy), build="0123"))
