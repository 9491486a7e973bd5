"""The file of keys, and what of a key is kept: its hash, and what it gives."""

import json
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.errors import ConfigError
from cascade.keys import ApiKey, KeyFile, KeyRing, hash_of, new_key
from cascade.wire.grant import Grant

CLASSES = {"gold": 1, "silver": 2, "bronze": 3}


def key_of(name: str, key: str, **more) -> ApiKey:
    return ApiKey.model_validate({"name": name, "sha256": hash_of(key), **more})


def ring(*keys: ApiKey) -> KeyRing:
    return KeyRing(KeyFile(keys=keys), CLASSES, 2)


def test_a_key_gives_what_its_entry_says():
    key = new_key()
    given = ring(key_of("app", key, **{"class": "gold"}, tenant="acme", admin=True, max_under_way=5, max_streams=2))
    assert given.grant(key.encode()) == Grant("app", "acme", 1, True, 5, 2)


def test_a_key_without_a_class_is_of_the_default_one():
    key = new_key()
    assert ring(key_of("app", key)).grant(key.encode()) == Grant("app", "", 2)


@given(st.binary(max_size=80))
def test_what_is_no_key_opens_nothing(presented):
    assert ring(key_of("app", new_key())).grant(presented) is None


def test_a_key_that_differs_in_one_character_opens_nothing():
    key = new_key()
    known = ring(key_of("app", key))
    for at in range(4, len(key)):
        other = key[:at] + ("A" if key[at] != "A" else "B") + key[at + 1 :]
        assert known.grant(other.encode()) is None


def test_keys_are_long_random_and_never_alike():
    keys = {new_key() for _ in range(1000)}
    assert len(keys) == 1000
    assert {len(key) for key in keys} == {47}


def test_a_class_that_there_is_not_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"key 'app': there is no class 'platinum', only gold, silver, bronze"):
        ring(key_of("app", new_key(), **{"class": "platinum"}))


def test_a_file_comes_back_as_it_was_written_and_only_its_owner_reads_it(tmp_path):
    path = tmp_path / "folder" / "keys.json"
    key = new_key()
    file = KeyFile().with_key(key_of("app", key, **{"class": "gold"}))
    file.write(path)
    assert KeyFile.read(path) == file
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert key not in path.read_text()
    assert [each.name for each in path.parent.iterdir()] == ["keys.json"]


def test_two_keys_of_one_name_are_refused():
    file = KeyFile().with_key(key_of("app", new_key()))
    with pytest.raises(ConfigError, match="already"):
        file.with_key(key_of("app", new_key()))


def test_a_key_is_taken_out_by_its_name():
    file = KeyFile().with_key(key_of("a", new_key())).with_key(key_of("b", new_key()))
    assert [key.name for key in file.without_key("a").keys] == ["b"]
    with pytest.raises(ConfigError, match="no key called 'c', only a, b"):
        file.without_key("c")


@pytest.mark.parametrize(
    "content",
    ["", "{", '{"keys": [{"name": "a"}]}', '{"keyz": []}', json.dumps({"keys": [{"name": "a", "sha256": "SECRET-" * 9}]})],
)
def test_a_file_that_is_none_is_refused_without_showing_what_it_holds(tmp_path, content):
    path = tmp_path / "keys.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"keys .*keys\.json") as refused:
        KeyFile.read(path)
    assert "SECRET" not in str(refused.value)


def test_a_file_that_is_not_there_says_what_makes_one(tmp_path):
    with pytest.raises(ConfigError, match="cascade key new"):
        KeyFile.read(tmp_path / "keys.json")
