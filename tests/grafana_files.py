"""The dashboard and the alert rules as they are shipped."""

import json
from pathlib import Path

import yaml

FOLDER = Path(__file__).resolve().parents[1] / "deployments" / "grafana"
RULES_FILE = FOLDER / "alerts.yaml"
DASHBOARD = json.loads((FOLDER / "cascade.json").read_text(encoding="utf-8"))
RULES = yaml.safe_load(RULES_FILE.read_text(encoding="utf-8"))
ALERTS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]}


def panels() -> list[dict]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def plain(expression: str) -> str:
    """A query as Grafana sends it."""
    return expression.replace("$__rate_interval", "1m").replace("$application", ".*")


def shown() -> list[tuple[str, str]]:
    """Every query of the dashboard, with its panel's title."""
    return [(panel["title"], plain(target["expr"])) for panel in panels() for target in panel["targets"]]
