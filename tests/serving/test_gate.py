"""Keys over HTTP and gRPC, and what one client may have under way: over fake stages, in this process."""

import asyncio
import json
import logging
import os

import numpy as np
import pytest
from asgi import started
from hypothesis import given
from hypothesis import strategies as st
from ladders import SURE, fake_stages, make_router, spec_document

from cascade.errors import ConfigError, Forbidden, TooManyRequests, Unauthorized
from cascade.keys import ApiKey, KeyFile, hash_of, new_key
from cascade.serving.gate import RELOAD_S, Gate
from cascade.serving.http_listener import PEER
from cascade.serving.ingress import Ingress
from cascade.serving.router import Router
from cascade.serving.service import Service
from cascade.spec import Ladder, parse_spec
from cascade.spec_sections import LimitsSpec
from cascade.wire.access import Access, access_of, allowed, key_in
from cascade.wire.client import encode_request
from cascade.wire.grant import Grant
from cascade.wire.routes import RouteKind
from cascade.wire.tensors import Datatype, TensorSpec

INFER = "/v2/models/fake/infer"
GOLD, BRONZE, ADMIN, WRONG = (new_key() for _ in range(4))
CLASSES = [{"name": name, "weight": weight} for name, weight in (("gold", 4), ("silver", 1), ("bronze", 0.5))]


def entry(name, key, **more):
    return ApiKey.model_validate({"name": name, "sha256": hash_of(key), **more})


def key_file(*more) -> KeyFile:
    return KeyFile(
        keys=(
            entry("gold-app", GOLD, **{"class": "gold"}, tenant="acme"),
            entry("bronze-app", BRONZE, **{"class": "bronze"}, tenant="bolt", max_under_way=2),
            entry("ops", ADMIN, admin=True),
            *more,
        )
    )


class Recording(Router):
    """A router that remembers what it was asked for."""

    asked: dict

    async def answer(self, inputs, rows, **facts):
        self.asked = facts
        return await super().answer(inputs, rows, **facts)


def ladder_of(folder, **changes) -> Ladder:
    document = spec_document(1, security={"keys": "keys.json"}, admission={"priorities": 3, "classes": CLASSES}, **changes)
    return Ladder(parse_spec(document), folder)


def application(folder, stages=None, **changes):
    key_file().write(folder / "keys.json")
    service = Service(ladder_of(folder, **changes), lambda: make_router(stages or fake_stages(1), kind=Recording))
    return Ingress(service), service


def message(**parameters) -> tuple[bytes, dict[str, str]]:
    spec = TensorSpec("x", Datatype.FP32, (1,))
    return encode_request([(spec, np.array([[SURE]], np.float32))], parameters=parameters)


async def ask(client, path=INFER, key=None, method="POST", header="authorization", **parameters):
    body, headers = message(**parameters) if method == "POST" else (b"", {})
    if key is not None:
        headers = {**headers, header: f"Bearer {key}" if header == "authorization" else key}
    return await client.request(method, path, body, headers)


# -- who is let in ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", ["authorization", "x-api-key"])
async def test_a_known_key_is_let_in_and_an_unknown_one_is_not(tmp_path, header):
    app, service = application(tmp_path)
    async with started(app) as client:
        assert (await ask(client, key=GOLD, header=header)).status == 200
        refused = await ask(client, key=WRONG, header=header)
        assert (refused.status, refused.json()["code"]) == (401, "unauthorized")
        assert refused.headers["www-authenticate"].startswith("Bearer")
        assert service.router.requests == {"answered": 1, "refused": 1, "cancelled": 0}


async def test_without_a_key_only_health_and_an_empty_page_are_told(tmp_path):
    app, _ = application(tmp_path)
    async with started(app) as client:
        for path in ("/", "/v2/health/live", "/v2/health/ready", "/v2/models/fake/ready", "/status"):
            assert (await client.get(path)).status == 200, path
        for path in (
            "/v2",
            "/v2/models",
            "/v2/models/fake",
            "/v2/models/fake/config",
            "/v2/models/fake/stats",
            "/v2/models/other",
            "/status/figures",
        ):
            assert (await client.get(path)).status == 401, path
        assert (await ask(client)).status == 401


async def test_what_is_for_operators_needs_a_key_of_theirs(tmp_path):
    app, _ = application(tmp_path)
    async with started(app) as client:
        for path in ("/v2/models/stats", "/v2/models/fake/stats"):
            assert (await ask(client, path, GOLD, "GET")).status == 403, path
            assert (await ask(client, path, ADMIN, "GET")).status == 200, path
        assert (await ask(client, "/v2/models/fake", GOLD, "GET")).status == 200


async def test_the_body_of_a_request_without_a_key_is_not_read(tmp_path):
    app, _ = application(tmp_path)

    def never():
        raise AssertionError("the body was read")
        yield b""

    async with started(app) as client:
        assert (await client.request("POST", INFER, never())).status == 401


async def test_without_security_a_key_is_neither_asked_for_nor_looked_at(tmp_path):
    service = Service(Ladder(parse_spec(spec_document(1)), tmp_path), lambda: make_router(fake_stages(1)))
    async with started(Ingress(service)) as client:
        assert (await ask(client)).status == 200
        assert (await ask(client, key=WRONG)).status == 200
        assert (await client.get("/v2/models/fake/stats")).status == 200


# -- what a key is worth ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "claims", "priority", "tenant"),
    [
        (GOLD, {}, 1, "acme"),
        (GOLD, {"priority": 3}, 3, "acme"),
        (BRONZE, {}, 3, "bolt"),
        (BRONZE, {"priority": 1}, 3, "bolt"),
        (BRONZE, {"priority": 1, "cascade_tenant": "acme"}, 3, "bolt"),
        (ADMIN, {}, 2, ""),
    ],
)
async def test_a_request_is_of_its_keys_class_and_tenant_whatever_it_claims(tmp_path, key, claims, priority, tenant):
    app, service = application(tmp_path)
    async with started(app) as client:
        assert (await ask(client, key=key, **claims)).status == 200
        asked = service.router.asked
        assert (asked["priority"], asked["tenant"]) == (priority, tenant)


async def test_headers_cannot_claim_what_the_key_does_not_give(tmp_path):
    app, service = application(tmp_path)
    body, headers = message()
    async with started(app) as client:
        claims = {"x-api-key": BRONZE, "priority": "u=0", "cascade-tenant": "acme"}
        assert (await client.request("POST", INFER, body, {**headers, **claims})).status == 200
        assert (service.router.asked["priority"], service.router.asked["tenant"]) == (3, "bolt")


# -- how much ------------------------------------------------------------------------------------------------------------


async def test_a_key_has_only_so_many_requests_under_way(tmp_path):
    app, service = application(tmp_path, fake_stages(1, seconds=0.05))
    async with started(app) as client:
        found = await asyncio.gather(
            *(ask(client, key=BRONZE) for _ in range(5)), *(ask(client, key=GOLD) for _ in range(5))
        )
        assert sorted(each.status for each in found[:5]) == [200, 200, 429, 429, 429]
        assert {each.status for each in found[5:]} == {200}
        refused = next(each for each in found if each.status == 429)
        assert (refused.json()["code"], refused.headers["retry-after"]) == ("too_many_requests", "1")
        assert (await ask(client, key=BRONZE)).status == 200
        assert service.gate._under_way == {}


async def test_an_address_has_only_so_many_requests_and_streams_under_way(tmp_path):
    service = Service(
        Ladder(parse_spec(spec_document(1, limits={"max_under_way": 3, "max_streams": 1})), tmp_path),
        lambda: make_router(fake_stages(1, seconds=0.05)),
    )
    app = Ingress(service)

    def from_address(address):
        async def addressed(scope, receive, send):
            scope[PEER] = address
            await app(scope, receive, send)

        return addressed

    async with started(app) as client:
        here, there = type(client)(from_address("10.0.0.1")), type(client)(from_address("10.0.0.2"))
        found = await asyncio.gather(*(ask(here) for _ in range(5)), ask(there))
        assert [each.status for each in found] == [200, 200, 200, 429, 429, 200]
        gate = service.gate
        stream = gate.enter(None, "10.0.0.1", stream=True)
        with pytest.raises(TooManyRequests, match="1 streams"):
            gate.enter(None, "10.0.0.1", stream=True)
        gate.leave(stream, stream=True)
        assert gate._under_way == gate._streams == {}


@given(st.lists(st.tuples(st.sampled_from(["", "a", "b"]), st.booleans()), max_size=40))
def test_nothing_is_kept_of_clients_that_have_left(visits):
    gate = Gate(LimitsSpec(max_under_way=8, max_streams=4))
    inside = []
    for peer, stream in visits:
        try:
            inside.append((gate.enter(None, peer, stream=stream), stream))
        except TooManyRequests:
            assert gate._under_way[peer] == 8 or (stream and gate._streams[peer] == 4)
    for client, stream in inside:
        gate.leave(client, stream=stream)
    assert gate._under_way == gate._streams == {}


# -- keys that change ---------------------------------------------------------------------------------------------------


def opens(gate, key) -> bool:
    try:
        return gate.grant(RouteKind.INFER, [(b"x-api-key", key.encode())]) is not None
    except Unauthorized:
        return False


def gate_at(folder, now):
    return Gate(LimitsSpec(), folder / "keys.json", {"gold": 1, "silver": 2, "bronze": 3}, 2, lambda: now[0])


def test_a_key_that_is_revoked_or_made_while_the_server_runs_counts_from_then_on(tmp_path, caplog):
    path, now = tmp_path / "keys.json", [0.0]
    key_file().write(path)
    gate = gate_at(tmp_path, now)
    key_file(entry("new", WRONG)).without_key("gold-app").write(path)
    assert (opens(gate, GOLD), opens(gate, WRONG)) == (True, False)  # not looked at yet
    now[0] = RELOAD_S
    assert (opens(gate, GOLD), opens(gate, WRONG)) == (False, True)


def test_a_file_that_breaks_leaves_the_keys_as_they_were_until_it_is_mended(tmp_path, caplog):
    path, now = tmp_path / "keys.json", [0.0]
    key_file().write(path)
    gate = gate_at(tmp_path, now)
    for content in (b"{", None):
        path.unlink() if content is None else path.write_bytes(content)
        now[0] += RELOAD_S
        assert opens(gate, GOLD)
    key_file().without_key("gold-app").write(path)
    now[0] += RELOAD_S
    assert not opens(gate, GOLD)


def test_a_file_replaced_behind_a_link_is_read_again(tmp_path):
    now = [0.0]
    for version, file in enumerate((key_file(), key_file().without_key("gold-app"))):
        file.write(tmp_path / f"v{version}" / "keys.json")
    link = tmp_path / "keys.json"
    link.symlink_to(tmp_path / "v0" / "keys.json")
    gate = gate_at(tmp_path, now)
    assert opens(gate, GOLD)
    other = tmp_path / "link"
    other.symlink_to(tmp_path / "v1" / "keys.json")
    os.replace(other, link)
    now[0] = RELOAD_S
    assert not opens(gate, GOLD)


def test_a_server_does_not_start_without_its_keys(tmp_path):
    with pytest.raises(ConfigError, match="cascade key new"):
        Service(ladder_of(tmp_path), lambda: make_router(fake_stages(1)))


# -- what is never shown ------------------------------------------------------------------------------------------------


async def test_no_key_is_in_a_log_or_an_answer(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    app, service = application(tmp_path)
    answers = []
    async with started(app) as client:
        for key in (GOLD, WRONG, BRONZE):
            answers += [await ask(client, path, key) for path in (INFER, "/nowhere", "/v2/models/x/infer")]
            answers += [await ask(client, "/v2/models/stats", key, "GET")]
            answers += [await client.request("POST", INFER, b"no message", {"authorization": f"Bearer {key}"})]
    told = caplog.text + repr(service.gate.__dict__) + "".join(repr(each.headers) + repr(each.body) for each in answers)
    for key in (GOLD, WRONG, BRONZE):
        assert key not in told
        assert key[4:20] not in told


# -- headers and routes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ([], None),
        ([(b"authorization", b"Bearer abc")], b"abc"),
        ([(b"authorization", b"bearer  abc ")], b"abc"),
        ([(b"authorization", b"Basic abc")], None),
        ([(b"x-api-key", b"abc")], b"abc"),
        ([(b"x-api-key", b"abc"), (b"authorization", b"Bearer abc")], b"abc"),
        ([(b"x-api-key", b"abc"), (b"authorization", b"Bearer abd")], b""),
    ],
)
def test_a_key_is_found_in_either_header_and_not_where_they_disagree(headers, found):
    assert key_in(headers) == found


def test_every_route_is_open_needs_a_key_or_is_for_operators():
    by_access = {access: {kind for kind in RouteKind if access_of(kind) is access} for access in Access}
    assert by_access[Access.OPEN] == {
        RouteKind.LIVENESS,
        RouteKind.SERVER_LIVE,
        RouteKind.SERVER_READY,
        RouteKind.MODEL_READY,
        RouteKind.STATUS_PAGE,
    }
    assert {RouteKind.STATUS_FIGURES, RouteKind.MODEL_STATISTICS, RouteKind.SERVER_STATISTICS} <= by_access[Access.ADMIN]
    assert access_of("a kind of tomorrow") is Access.ADMIN  # type: ignore[arg-type]


def test_what_is_allowed_follows_from_route_and_grant():
    user, admin = Grant("a", "", 1), Grant("b", "", 1, admin=True)
    allowed(RouteKind.SERVER_LIVE, None)
    allowed(RouteKind.INFER, user)
    allowed(RouteKind.MODEL_STATISTICS, admin)
    with pytest.raises(Unauthorized):
        allowed(RouteKind.INFER, None)
    with pytest.raises(Forbidden):
        allowed(RouteKind.MODEL_STATISTICS, user)


def test_the_file_of_keys_is_json_that_an_operator_can_read(tmp_path):
    key_file().write(tmp_path / "keys.json")
    document = json.loads((tmp_path / "keys.json").read_text())
    assert document["keys"][0] == {
        "name": "gold-app",
        "sha256": hash_of(GOLD),
        "hint": "",
        "class": "gold",
        "tenant": "acme",
        "admin": False,
    }
