"""The dashboard and the alert rules: only metrics of the table, each used as what it is, and every alert explained."""

import re
from pathlib import Path

import pytest
from grafana_files import ALERTS, DASHBOARD, panels, plain, shown
from promql import NoQuery, Query, Selected

from cascade.serving.metric_table import METRICS

ROOT = Path(__file__).resolve().parents[1]
OPERATIONS = ROOT / "docs" / "operations.md"
BY_SERIES = {f"ray_{series}": metric for metric in METRICS for series in metric.series}
SERVES = {"application", "deployment", "replica"}
UNITS = {  # Grafana's names of what the panels show, and what that may be made of
    "s": {"seconds"},
    "percentunit": {"ratio", "rows", "cost units"},
    "reqps": {"rows", "rows/s", "requests"},
    "ops": {"batches", "audits"},
    "watt": {"joules"},
    "joule": {"joules", "rows"},
    "none": {"gain", "cost units", "rows"},
    "short": {"rows", "replicas", "steps"},
}
LEFT_OUT = {
    # What the panel of the two counters shows, over any time.
    "cascade_class_degraded_ratio",
    "cascade_class_shed_per_second",
}


def queries() -> list[tuple[str, str]]:
    return shown() + [(name, rule["expr"]) for name, rule in ALERTS.items()]


def selected() -> list[Selected]:
    return [each for _, expression in queries() for each in Query(expression).selected]


# -- queries -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "sum(",
        "sum(a))",
        "rate(a)",
        "a[5m]",
        "sum(rate(a))",
        "rate(sum(a)[5m])",
        'a{b="c"',
        "a{b=c}",
        "a b",
        "sum by (a b) (c)",
        "a ?? b",
        "a +",
    ],
)
def test_what_is_no_query_is_refused(broken):
    with pytest.raises(NoQuery):
        Query(broken)


def test_a_query_is_read_with_its_labels_and_functions():
    query = Query('histogram_quantile(0.9, sum by (le, stage) (rate(a_bucket{x=~".*"}[5m]))) / (max(b) - 2)')
    assert query.selected == [Selected("a_bucket", {"le", "stage", "x"}, "rate"), Selected("b", set(), None)]


@pytest.mark.parametrize(("where", "expression"), queries())
def test_a_query_uses_metrics_of_the_table_as_what_they_are(where, expression):
    assert where
    found = Query(expression).selected
    assert found
    for each in found:
        metric = BY_SERIES[each.metric]
        grows = metric.kind != "gauge"
        assert (each.function is not None) == grows, f"{each.metric} is a {metric.kind}"
        allowed = {*metric.labels, *SERVES} | ({"le"} if each.metric.endswith("_bucket") else set())
        assert each.labels <= allowed, each
        assert not each.metric.endswith("_bucket") or "le" in each.labels


def test_every_metric_is_shown_or_left_out_on_purpose():
    shown = {
        BY_SERIES[each.metric].name
        for panel in panels()
        for t in panel["targets"]
        for each in Query(plain(t["expr"])).selected
    }
    names = {metric.name for metric in METRICS}
    assert names - shown == LEFT_OUT


# -- the dashboard -----------------------------------------------------------------------------------------------------


def test_the_dashboard_can_be_imported_anywhere_and_again():
    assert DASHBOARD["uid"] == "cascade-ladder"
    assert "id" not in DASHBOARD
    variables = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert set(variables) == {"datasource", "application"}
    for panel in panels():
        assert {panel["datasource"]["uid"], *(t["datasource"]["uid"] for t in panel["targets"])} == {"${datasource}"}
        for target in panel["targets"]:
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= {"application", "__rate_interval"}
            assert all('application=~"$application"' in part for part in re.findall(r"\{[^}]*\}", target["expr"]))
    listed = re.fullmatch(r"label_values\(ray_(\w+), application\)", variables["application"]["definition"])
    assert listed is not None
    assert f"ray_{listed[1]}" in BY_SERIES


def test_panels_have_their_own_place_a_title_and_a_sentence():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        grid = panel["gridPos"]
        cells = {(x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["title"]
        assert panel["type"] == "row" or panel["description"].endswith(".")


def test_panels_are_in_base_units_of_what_they_show():
    for panel in panels():
        allowed = UNITS[panel["fieldConfig"]["defaults"]["unit"]]
        for target in panel["targets"]:
            units = {BY_SERIES[each.metric].unit for each in Query(plain(target["expr"])).selected}
            assert units <= allowed, panel["title"]


# -- alerts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_how_bad_it_is_and_where_to_read_on(name):
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in {"info", "warning", "critical"}
    assert rule["annotations"]["runbook"] == f"docs/operations.md#{name.lower()}"
    labels = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    assert labels <= set.union(*(each.labels for each in Query(rule["expr"]).selected), SERVES)


def test_the_document_explains_every_alert_and_no_other():
    assert re.findall(r"^### (Cascade\w+)$", OPERATIONS.read_text(encoding="utf-8"), re.MULTILINE) == list(ALERTS)
