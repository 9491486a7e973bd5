"""Known vulnerabilities of the exact versions in constraints.txt, by pip-audit; or, loudly, that nobody could look.

`python3 .ci/audit.py VENV`. The gate may run where there is a package registry and nothing else: a mirror that serves
packages often has no advisories, and then pip-audit skips every package and says that it found none. So first a version that
is known to be vulnerable is asked for. Only if the registry says so is pip-audit installed and run. It fails for a
vulnerability and for nothing else, never because a network is missing.
"""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROBE = ("pip", "20.0")
"""PYSEC-2021-437 and others are known of it."""
SERVICE = "https://pypi.org/pypi/{}/{}/json"
PATIENCE_S = 5
LIMIT_S = 300
ACCEPTED: dict[str, str] = {}
"""Id of an advisory to why it does not concern us."""


def service_answers(fetch: Callable[[str], bytes]) -> bool:
    """Whether the registry knows advisories: of one version it must."""
    try:
        return bool(json.loads(fetch(SERVICE.format(*PROBE))).get("vulnerabilities"))
    except (OSError, ValueError, AttributeError):
        return False


def verdict(report: dict) -> tuple[list[str], list[str], int]:
    """Vulnerabilities that are not accepted, packages that were skipped, and how many were looked at."""
    found, skipped, looked_at = [], [], 0
    for package in report["dependencies"]:
        if "skip_reason" in package:
            skipped.append(package["name"])
            continue
        looked_at += 1
        for each in package["vulns"]:
            if not {each["id"], *each.get("aliases", [])} & set(ACCEPTED):
                fixed = ", ".join(each["fix_versions"]) or "no version"
                found.append(f"{package['name']} {package['version']}: {each['id']}, fixed in {fixed}")
    return found, skipped, looked_at


def fetch(url: str) -> bytes:
    """What is at an address."""
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as response:
        content: bytes = response.read()
    return content


def audit(venv: Path) -> dict:
    """Run pip-audit, in a virtual environment of its own; returns its report."""
    if not (venv / "bin" / "pip-audit").exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True, timeout=LIMIT_S)
        install = [str(venv / "bin" / "pip"), "install", "-q", "--disable-pip-version-check", "pip-audit"]
        subprocess.run(install, check=True, timeout=LIMIT_S)
    command = [str(venv / "bin" / "pip-audit"), "-r", str(ROOT / "constraints.txt"), "--no-deps", "--disable-pip"]
    command += ["--vulnerability-service", "pypi", "--format", "json", "--progress-spinner", "off"]
    done = subprocess.run(command, capture_output=True, timeout=LIMIT_S, check=False)
    report: dict = json.loads(done.stdout)
    return report


def main() -> int:
    """Audit, and say what came of it."""
    if not service_answers(fetch):
        return not_audited("the registry here has no advisories")
    try:
        found, skipped, looked_at = verdict(audit(Path(sys.argv[1])))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return not_audited(f"pip-audit could not be installed or run: {error}")
    print(f"audited {looked_at} packages, {len(skipped)} are not known to the service")
    for each in found:
        print(f"VULNERABLE: {each}")
    return 1 if found else 0


def not_audited(why: str) -> int:
    """Say so; that is no failure of what is checked."""
    print(f"\n*** DEPENDENCIES WERE NOT AUDITED: {why}. Run `make audit` where pypi.org can be reached. ***\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
