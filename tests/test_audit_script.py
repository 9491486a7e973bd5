"""The audit of dependencies: what fails it, and that it never takes silence for health."""

import importlib.util
import json
import urllib.error
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "audit.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("audit_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_registry_that_knows_no_advisory_of_a_vulnerable_version_is_not_believed(script):
    def unreachable(url):
        raise urllib.error.URLError("no network")

    assert script.service_answers(lambda url: json.dumps({"vulnerabilities": [{"id": "X"}]}).encode())
    assert not script.service_answers(lambda url: json.dumps({"vulnerabilities": []}).encode())
    assert not script.service_answers(lambda url: b"<html>")
    assert not script.service_answers(lambda url: b"[]")
    assert not script.service_answers(unreachable)


def test_a_vulnerability_is_named_with_its_fix_and_a_skipped_package_is_counted(script):
    vulnerable = {"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2"]}]}
    report = {
        "dependencies": [vulnerable, {"name": "b", "skip_reason": "unknown"}, {"name": "c", "version": "1", "vulns": []}]
    }
    assert script.verdict(report) == (["a 1: PYSEC-1, fixed in 2"], ["b"], 2)


def test_what_could_not_be_audited_is_said_and_is_no_failure(script, capsys):
    assert script.not_audited("no network") == 0
    assert "NOT AUDITED: no network" in capsys.readouterr().out
