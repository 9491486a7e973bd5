"""The alert rules in the hands of Prometheus: each fires at what it is for and says so, and none at a healthy ladder."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from grafana_files import ALERTS, RULES_FILE, shown

PROMTOOL = shutil.which("promtool")
STEPS = 240
"""Of 15 s: an hour."""

needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")


class Case(NamedTuple):
    """What an alert is for.

    Attributes:
        series: series by name that are not as in a healthy ladder.
        labels: the alert's, beside its severity.
        value: its value as the summary says it, where it does.
    """

    series: dict[str, str]
    labels: dict[str, str]
    value: str = ""


def named(metric: str, **labels: str) -> str:
    """A series as Prometheus has it of one router of a ladder."""
    pairs = (f'{name}="{value}"' for name, value in ({"application": "shop", "replica": "r1"} | labels).items())
    return "ray_cascade_" + metric + "{" + ",".join(pairs) + "}"


def steady(value: float) -> str:
    return f"{value}x{STEPS}"


def rising(by: float) -> str:
    """A counter that rises by so much every 15 s."""
    return f"0+{by}x{STEPS}"


ROWS = {outcome: named("rows_total", outcome=outcome) for outcome in ("answered", "shed", "expired", "failed")}
REPLICAS, FAILURES, BATCHES = (
    named(metric, stage="large") for metric in ("stage_replicas", "stage_failures_total", "stage_batches_total")
)
DEGRADED, LOSS, LIMIT = (
    named(metric) for metric in ("degraded_rows_total", "certified_loss_ratio", "certified_loss_limit_ratio")
)
BELOW = named("class_below_floor_rows_total", priority="1")
PREDICTED, AUDITED, AUDITED_SE = (
    named(metric)
    for metric in ("predicted_accuracy_ratio", "audited_accuracy_ratio", "audited_accuracy_standard_error_ratio")
)
PLAN_AGE, LAG = named("plan_age_seconds"), named("event_loop_lag_seconds")
HEALTHY = {
    **dict.fromkeys(ROWS.values(), steady(0)),
    ROWS["answered"]: rising(1500),
    REPLICAS: steady(2),
    FAILURES: steady(0),
    BATCHES: rising(150),
    DEGRADED: rising(150),
    LOSS: steady(0.01),
    LIMIT: steady(0.2),
    BELOW: steady(0),
    PREDICTED: steady(0.94),
    AUDITED: steady(0.93),
    AUDITED_SE: steady(0.01),
    PLAN_AGE: steady(0.5),
    LAG: steady(0.002),
}
SHOP, LARGE, ROUTER = (
    {"application": "shop"},
    {"application": "shop", "stage": "large"},
    {"application": "shop", "replica": "r1"},
)
CASES = {
    "CascadeStageOut": Case({REPLICAS: steady(0)}, LARGE),
    "CascadeStageFailing": Case({FAILURES: rising(50)}, LARGE, "25%"),
    "CascadeShedding": Case({ROWS["shed"]: rising(500)}, SHOP, "25%"),
    "CascadeUnanswered": Case({ROWS["expired"]: rising(300), ROWS["failed"]: rising(200)}, SHOP, "25%"),
    "CascadeDegraded": Case({DEGRADED: rising(750)}, SHOP, "50%"),
    "CascadeLossNearItsLimit": Case({LOSS: steady(0.18)}, SHOP, "90%"),
    "CascadeBelowFloor": Case({BELOW: rising(1)}, SHOP | {"priority": "1"}),
    "CascadeAuditedBelowPredicted": Case({AUDITED: steady(0.9)}, ROUTER),
    "CascadePlanStale": Case({PLAN_AGE: steady(90)}, ROUTER, "1m 30s"),
    "CascadeRouterBehind": Case({LAG: steady(0.25)}, ROUTER, "250ms"),
    "CascadeSilent": Case({PLAN_AGE: ""}, {}),
}


def told(name: str, case: Case) -> dict[str, str]:
    """The alert's annotations with its labels and its value put in."""
    texts = {}
    for key, text in ALERTS[name]["annotations"].items():
        filled = re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: case.labels[found[1]], text)
        texts[key] = re.sub(r"\{\{ \$value \| \w+ \}\}", case.value, filled)
    return texts


def promtool(*arguments: str) -> str:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def judge(folder: Path, changes: dict[str, str], expected: dict[str, list[dict]]) -> None:
    """Have Prometheus watch an hour of a ladder and compare what fires at its end."""
    series = {name: values for name, values in (HEALTHY | changes).items() if values}
    document = {
        "rule_files": [str(RULES_FILE)],
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "alert_rule_test": [
                    {"eval_time": "1h", "alertname": name, "exp_alerts": expected.get(name, [])} for name in ALERTS
                ],
            }
        ],
    }
    file = folder / "test.yaml"
    file.write_text(yaml.safe_dump(document))
    promtool("test", "rules", str(file))


def test_every_alert_has_a_case():
    assert CASES.keys() == ALERTS.keys()


@needs_promtool
def test_prometheus_reads_the_rules():
    assert f"{len(ALERTS)} rules found" in promtool("check", "rules", str(RULES_FILE))


@needs_promtool
def test_prometheus_reads_every_query_of_the_dashboard(tmp_path):
    rules = [{"record": f"q{place}", "expr": query} for place, (_, query) in enumerate(shown())]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", str(file))


@needs_promtool
def test_no_alert_fires_at_a_healthy_ladder(tmp_path):
    judge(tmp_path, {}, {})


@needs_promtool
@pytest.mark.parametrize("name", CASES)
def test_an_alert_fires_at_what_it_is_for_and_says_so(tmp_path, name):
    case = CASES[name]
    labels = case.labels | ALERTS[name]["labels"]
    judge(tmp_path, case.series, {name: [{"exp_labels": labels, "exp_annotations": told(name, case)}]})


@needs_promtool
def test_an_alert_that_should_have_fired_is_missed(tmp_path):
    with pytest.raises(AssertionError, match="CascadeStageOut"):
        judge(tmp_path, {REPLICAS: steady(0)}, {})
