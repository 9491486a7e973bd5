"""What a running ladder is made of, as two digests: its build, which only new replicas take up, and its version, all of it.

The **build** is what processes are started with: networks, weights, placements, sizes, the classes' names and number. The
**version** is the build with what a router can take up while it runs: the calibration, the certificate, the service times,
the outcome table, base prices, and the weights and floors of classes. Knows the spec and files; no Ray, no torch.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from cascade.errors import ConfigError
from cascade.spec import CascadeSpec, Ladder

DIGITS = 16
"""Hexadecimal digits that are kept: 64 bits tell any versions of one ladder apart, and can be read out over a telephone."""

LIVE = ("price_per_cost", "audit_share", "calibration", "data")
"""Fields of the spec that a running router takes up."""
LIVE_OF_STAGE = ("base_price",)
LIVE_OF_CLASS = ("weight", "max_loss", "beyond_floor")
LIVE_OF_ADMISSION = ("wait_share",)


def build_digest(ladder: Ladder, stages: Mapping[str, str] | None = None) -> str:
    """Digest of what only new replicas take up.

    Args:
        ladder: the ladder.
        stages: digest of each stage by name, see `Ladder.stage_digests`; computed from the files if None.

    Raises:
        SpecError: a weights file is missing.
    """
    return _digest(json.dumps([_fixed(ladder.spec), stages or ladder.stage_digests()], sort_keys=True).encode())


def version_digest(ladder: Ladder, stages: Mapping[str, str] | None = None) -> str:
    """Digest of everything that answers depend on.

    Args:
        ladder: the ladder.
        stages: see `build_digest`.

    Raises:
        SpecError: a weights file is missing.
    """
    parts = [build_digest(ladder, stages).encode(), json.dumps(_whole(ladder.spec), sort_keys=True).encode()]
    for path in (ladder.calibration_path, ladder.service_path, ladder.certificate_path, ladder.table_path):
        parts.append(hashlib.sha256(path.read_bytes()).digest() if path.is_file() else b"")
    return _digest(b"\0".join(parts))


def group_digest(ladder: Ladder, group: Sequence[int]) -> str:
    """Digest of stages that one replica runs, as the ladder's artefacts were found to belong to; else of the files.

    Args:
        ladder: the ladder.
        group: which of its stages.

    Raises:
        SpecError: a weights file is missing.
    """
    stages = [ladder.spec.stages[index] for index in group]
    known = ladder.digests or {}
    return _digest(json.dumps([known.get(stage.name) or ladder.stage_digest(stage) for stage in stages]).encode())


def check_same_build(running: Ladder, wanted: Ladder) -> None:
    """Refuse a spec that differs from the running one in more than what routers take up.

    Args:
        running: the ladder that is served.
        wanted: what was read now.

    Raises:
        ConfigError: naming the fields.
    """
    differing = list(_differences(_fixed(running.spec), _fixed(wanted.spec), ""))
    if differing:
        raise ConfigError(
            f"{', '.join(differing)} cannot change while the server runs; deploy the ladder with `cascade deploy`, which "
            "replaces its replicas one after the other"
        )


def _whole(spec: CascadeSpec) -> dict[str, Any]:
    return spec.model_dump(mode="json")


def _fixed(spec: CascadeSpec) -> dict[str, Any]:
    """The spec without what a running router takes up."""
    document = _whole(spec)
    for name in LIVE:
        del document[name]
    for stage in document["stages"]:
        for name in LIVE_OF_STAGE:
            del stage[name]
    for name in LIVE_OF_ADMISSION:
        del document["admission"][name]
    for each in document["admission"]["classes"] or ():
        for name in LIVE_OF_CLASS:
            del each[name]
    return document


def _differences(first: Any, second: Any, path: str) -> Any:
    """Paths at which two documents differ."""
    if isinstance(first, dict) and isinstance(second, dict):
        for name in first.keys() | second.keys():
            yield from _differences(first.get(name), second.get(name), f"{path}.{name}" if path else name)
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        for place, (left, right) in enumerate(zip(first, second, strict=True)):
            name = left["name"] if isinstance(left, dict) and left.get("name") else str(place)
            yield from _differences(left, right, f"{path}.{name}")
    elif first != second:
        yield path


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:DIGITS]
