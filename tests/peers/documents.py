"""Documents of the serving benchmark, made up: numbers that are easy to follow through tables and targets."""

from typing import Any

CHEAP, WHOLE = "two cheapest rungs", "whole ladder"


def point(system: str, load: str, throughput: float, *, ladder: str = CHEAP, round: int = 0, **more: Any) -> dict[str, Any]:
    """One point as the benchmark writes it."""
    return {
        "ladder": ladder,
        "system": system,
        "setting": "defaults",
        "round": round,
        "load": load,
        "connections": None,
        "rate": None,
        "rows": 1,
        "seconds": 1.0,
        "answered": int(throughput),
        "wrong": 0,
        "throughput": throughput,
        "p50_ms": 1.0,
        "p99_ms": 1.5,
        "first_p50_ms": 1.0,
        "cpu_ms": 1e3 / throughput,
        "cpu_ms_by_process": {"router": 0.6e3 / throughput, "stage": 0.4e3 / throughput},
        "client_share": 0.1,
        "late_ms": None,
        "other_share": 0.0,
        "yardstick_ms": 100.0,
        **more,
    }


def profile(system: str, shares: dict[str, float], **more: Any) -> dict[str, Any]:
    """What a profile came to."""
    made = {"kernel_share": 0.25, "cores": 1.0, "missed": None}
    return {"ladder": CHEAP, "system": system, "load": "32 connections", "shares": shares, **made, **more}


def document(points: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """A whole document around some points."""
    names = dict.fromkeys(each["system"] for each in points)
    ladder = {"stages": ["a", "b"], "rows": 10, "accuracy": 0.9, "escalated": 0.2, "same_answers": {"cascade": 10}}
    return {
        "command": "python -m benchmarks.serving",
        "date": "today",
        "machine": {"cpu": "a CPU", "cores": 2, "python": "3", "ray": "2", "torch": "2"},
        "rounds": 1,
        "whole_rounds": 1,
        "seconds": 1.0,
        "common_rate": 60.0,
        "systems": [{"name": name, "what": f"what {name} is", "setting": "defaults"} for name in names],
        "missing": {},
        "ladders": [{"title": CHEAP, **ladder}, {"title": WHOLE, **ladder}],
        "starts": [],
        "points": points,
        "floors": [],
        "profiles": [],
        "memory": None,
        **more,
    }
