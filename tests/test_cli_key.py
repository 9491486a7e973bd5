"""``cascade key``: a key is shown once, listed without itself, and revoked by its name."""

import json

import pytest
import yaml
from ladders import spec_document
from typer.testing import CliRunner

from cascade.cli import app
from cascade.keys import KeyFile, hash_of


@pytest.fixture
def spec(tmp_path):
    path = tmp_path / "cascade.yaml"
    path.write_text(yaml.safe_dump(spec_document(1, security={"keys": "secrets/keys.json"})))
    return path


def run(*arguments):
    return CliRunner().invoke(app, ["key", *map(str, arguments)])


def test_a_new_key_is_printed_and_only_its_hash_is_kept(spec):
    made = run("new", spec, "--name", "app", "--class", "p1", "--tenant", "acme", "--max-under-way", 9)
    assert made.exit_code == 0, made.output
    key = made.stdout.strip()
    content = (spec.parent / "secrets" / "keys.json").read_text()
    assert key.startswith("csk_")
    assert key not in content
    (kept,) = KeyFile.model_validate_json(content).keys
    assert (kept.sha256, kept.class_name, kept.tenant, kept.max_under_way) == (hash_of(key), "p1", "acme", 9)


def test_keys_are_listed_without_keys_and_hashes(spec):
    key = json.loads(run("new", spec, "--name", "app", "--json").stdout)["key"]
    run("new", spec, "--name", "ops", "--admin")
    listed = run("list", spec, "--json").stdout
    assert [each["name"] for each in json.loads(listed)["keys"]] == ["app", "ops"]
    assert key not in listed
    assert hash_of(key) not in listed
    assert "ops" in run("list", spec).stdout


def test_a_revoked_key_is_gone(spec):
    run("new", spec, "--name", "app")
    assert run("revoke", spec, "app").exit_code == 0
    assert run("revoke", spec, "app").exit_code == 2
    assert json.loads(run("list", spec, "--json").stdout)["keys"] == []


@pytest.mark.parametrize("options", [("--name", "app", "--class", "platinum"), ("--name", "not a word")])
def test_a_key_that_cannot_be_is_refused_and_no_file_is_made(spec, options):
    assert run("new", spec, *options).exit_code == 2
    assert not (spec.parent / "secrets").exists()


def test_a_spec_that_asks_for_no_keys_says_how_to(tmp_path):
    path = tmp_path / "cascade.yaml"
    path.write_text(yaml.safe_dump(spec_document(1)))
    refused = run("new", path, "--name", "app")
    assert refused.exit_code == 2
    assert "security: {keys: keys.json}" in refused.stderr
