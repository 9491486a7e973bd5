"""The sections of a ladder's report, each a few plain words, a figure and a table. Knows results, and neither spec nor file.

What is said is looked up in the report; nothing is computed but shares and differences of what stands there.
"""

from collections.abc import Mapping

import numpy as np

from cascade.calibration.certificate import PathPoint
from cascade.calibration.frontier import LOSSES
from cascade.calibration.plan import PlanPoint
from cascade.report.degradation import Load
from cascade.report.markup import cards, figure, paragraph, table
from cascade.report.numbers import GAP, duration, percent, price, quantity, times
from cascade.report.summary import Report

HEADLINE_LOADS = (2.0, 8.0)
"""Multiples of the first full stage's rate that the headline names; the heaviest load where neither was simulated."""
PLAN_ROWS = 10
"""Rates of the plan's table, about."""


def summary(report: Report) -> str:
    """The numbers to see first."""
    own, judged, degradation = report.own, report.judged, report.degradation
    dearest, certificate = judged.stages[-1], report.certificate
    entries = [
        (
            "Accuracy, nothing loaded",
            percent(own.accuracy, 2),
            f"{dearest} alone: {percent(report.frontier.main.top_accuracy, 2)}, "
            f"a difference of {-100 * own.loss:+.2f} ± {196 * own.loss_se:.2f} points",
        ),
        (
            "Mean cost of an answer",
            f"{quantity(own.cost)} {judged.cost_unit}",
            f"{report.savings['cost_ratio']:.2g} of what {dearest} alone takes, {quantity(report.savings['cost_top'])}; at "
            f"{quantity(degradation.full_at)} requests/s that saves {quantity(report.savings['cost_saved_per_day'])} a day",
        ),
        (
            "Certified loss at the spec's prices",
            f"at most {percent(report.own_bound, 2)}",
            f"of requests get a wrong answer where the whole ladder would be right; confidence {_confidence(report)}, "
            f"{certificate.rows:,} rows",
        ),
        (
            "Degradation begins at",
            f"{quantity(degradation.full_at)} requests/s",
            f"{degradation.stage} is then full, and the rows that would gain least from it are answered by cheaper stages",
        ),
        *(_load_card(load, report) for load in _headline_loads(report)),
    ]
    return cards(entries)


def _load_card(load: Load, report: Report) -> tuple[str, str, str]:
    said = (
        f"of all requests offered answered right and in time; {percent(load.slo_attainment, 1)} answered within "
        f"{duration(report.degradation.deadline_s)} (median {duration(load.p50_s)}, p99 {duration(load.p99_s)}), "
        f"{percent(load.shed, 1)} turned away"
    )
    return f"Simulated at {load.multiple:g} times that rate", percent(load.accuracy, 2), said


def _headline_loads(report: Report) -> list[Load]:
    loads = report.degradation.loads
    return [load for load in loads if load.multiple in HEADLINE_LOADS] or [loads[-1]]


def ladder(report: Report) -> str:
    """The stages: what they know, cost and can take, and which rows stop where."""
    judged, own = report.judged, report.own
    fitted = report.calibration.stages
    visits = judged.walk(own.prices).visits
    rows = [
        (
            name,
            quantity(cost),
            percent(right, 2),
            percent(served, 2),
            percent(stage.accuracy, 2),
            percent(visited, 1),
            percent(stopped, 1),
            f"{1e3 * inputs.a_s:.3g} + {1e3 * inputs.b_s:.3g} n",
            f"{inputs.replicas} x {inputs.max_batch_size}",
            quantity(inputs.rows_per_s),
            "" if index == 0 else f"{inputs.base_price:.3g}",
        )
        for index, (name, cost, right, served, stage, visited, stopped, inputs) in enumerate(
            zip(
                judged.stages,
                judged.cost.tolist(),
                judged.right.mean(axis=0).tolist(),
                judged.served.mean(axis=0).tolist(),
                fitted,
                visits.tolist(),
                own.exit_shares,
                report.deployment.stages,
                strict=True,
            )
        )
    ]
    head = (
        "stage",
        f"cost, {judged.cost_unit}",
        "accuracy alone",
        "served",
        "alone, on calibration rows",
        "rows that visit",
        "rows that stop",
        "ms for a batch of n rows",
        "replicas x batch",
        "rows/s at most",
        "base price",
    )
    return paragraph(
        "A request starts at the cheapest stage and goes on as long as a dearer one promises to mend a wrong answer "
        "more often than its price says. Visits and stops are those of the spec's prices with nothing loaded."
    ) + table(
        f"Stages, cheapest first. Accuracy on {judged.rows:,} test rows, and beside it on the calibration rows; served: if "
        "every row stopped there, with earlier answers combined or recalled. Times are those of the service profile.",
        head,
        rows,
    )


def reliability(report: Report, figures: Mapping[str, str]) -> str:
    """Confidence against accuracy of every stage."""
    panels = [
        figure(
            figures[f"reliability-{number}"],
            f"reliability{number}",
            f"Reliability of {stage.stage}: accuracy by confidence in {len(stage.count)} bins; expected calibration error "
            f"{percent(stage.ece, 1)} on {stage.rows:,} rows",
            small=True,
        )
        for number, stage in enumerate(report.reliability, start=1)
        if stage.rows
    ]
    rows = [
        (
            stage.stage,
            f"{stage.rows:,}",
            percent(stage.mean_confidence, 1),
            percent(stage.mean_accuracy, 1),
            percent(stage.ece, 2),
            percent(stage.ece_by_chance, 2),
        )
        for stage in report.reliability
    ]
    return (
        paragraph(
            "Each stage says how probable it is that its answer is right. Of the answers given with 80 % confidence, "
            "80 % should be right: points on the dashed line. Bars are 95 % intervals; below is how many rows have "
            "which confidence. Only test rows that reach a stage count, so dearer stages see the hard ones."
        )
        + f'<div class="panels">{"".join(panels)}</div>'
        + table(
            "Expected calibration error (ECE): mean distance between confidence and accuracy over bins of equal numbers of "
            "rows. By chance: what perfectly calibrated confidences would show on as many rows.",
            ("stage", "rows that reach it", "mean confidence", "accuracy", "ECE", "by chance"),
            rows,
        )
    )


def frontier(report: Report, svg: str) -> str:
    """Accuracy against cost, between chance and the oracle."""
    main, own, dearest = report.frontier.main, report.own, report.judged.stages[-1]
    limit = float(main.oracle.accuracy_at(own.cost, sequential=True))
    label = (
        f"Accuracy against mean cost. At the spec's prices the cascade has {percent(own.accuracy, 2)} for "
        f"{quantity(own.cost)} {report.judged.cost_unit}; at that cost escalating at random has "
        f"{percent(float(main.random_at(own.cost)), 2)}, the oracle {percent(limit, 2)}"
    )
    rows = []
    for loss in LOSSES:
        point, gain = main.at_loss(loss), main.gain(loss)
        cheaper, cost = ("never", "") if point is None or gain is None else (times(gain), quantity(point.cost))
        share = main.cost_share(loss)
        rows.append((percent(loss, 1), cheaper, cost, times(main.oracle_gain(loss)), percent(share, 0)))
    return (
        paragraph(
            "The price of cost is a dial: each point of the green line is the same ladder with dearer or cheaper "
            "visits. Between chance (grey) and the oracle (blue), which knows in advance which stage will be right, "
            "lies all that confidences can win. The oracle is a limit, not a goal: part of it is lucky guesses."
        )
        + figure(svg, "frontier", label, f"Accuracy and mean cost on {report.judged.rows:,} test rows.")
        + table(
            f"How many times cheaper than {dearest} alone at the same accuracy less at most so much. The points were "
            "chosen on these test rows, the spec's own was not. Share: of the oracle's saving, on a logarithmic scale.",
            ("accuracy lost, at most", "times cheaper", f"cost, {report.judged.cost_unit}", "oracle", "share reached"),
            rows,
        )
    )


def risk(report: Report, svg: str) -> str:
    """Loss along the price path and its bounds."""
    certificate, dearest = report.certificate, report.judged.stages[-1]
    path, own = certificate.path, report.own_certified
    asked = f"{percent(certificate.max_loss, 2)} with confidence {_confidence(report)}"
    named: dict[PathPoint, list[str]] = {path[0]: ["safest prices"]}
    marks = (
        ("prices of the spec", own),
        ("prices may move freely up to here", None if certificate.price_cap is None else path[certificate.price_cap]),
        ("cheapest certified", None if certificate.chosen is None else path[certificate.chosen]),
        ("everything stops at the first stage", path[-1]),
    )
    for name, point in marks:
        if point is not None:
            named.setdefault(point, []).append(name)
    points = sorted(named, key=path.index)
    verdict = (
        f"Nothing can be certified at {asked}; the smallest loss that these rows could certify is "
        f"{percent(certificate.smallest_max_loss, 3)}."
        if certificate.chosen is None
        else f"Asked for was {asked}: the cheapest prices that keep it cost {quantity(path[certificate.chosen].cost)} "
        f"{certificate.cost_unit} an answer."
    )
    return (
        paragraph(
            "Lost means: the whole ladder would have been right, and the answer given is wrong. The green line counts "
            "that on the test rows; the blue lines bound it for future requests like them, all points at once, unless "
            f"the rows were drawn unluckily. {verdict}"
        )
        + figure(
            svg,
            "risk",
            "Loss against mean cost along the price path, with bounds; at the spec's prices at most "
            f"{percent(report.own_bound, 2)}",
            "The dashed bound holds however prices move below a point. Rows that leave early because a queue is full are "
            "covered by its left end only.",
        )
        + table(
            f"Points of the path; confidence {_confidence(report)} for each column of bounds, {certificate.rows:,} test "
            "rows.",
            ("prices", f"price of {dearest}", f"cost, {certificate.cost_unit}", "accuracy", "lost", "at most", "up to here"),
            [
                (
                    ", ".join(named[point]),
                    price(point.prices[-1]),
                    quantity(point.cost),
                    percent(point.accuracy, 2),
                    percent(point.loss, 2),
                    percent(point.bound, 2),
                    percent(point.bound_below, 2),
                )
                for point in points
            ],
            marked=[index for index, point in enumerate(points) if point == own],
        )
    )


def plan(report: Report, svg: str) -> str:
    """Prices, mix and accuracy by arrival rate."""
    plan, full_at = report.plan, report.degradation.full_at
    stages = report.judged.stages
    rows = [
        (
            f"{quantity(point.rate)} ({point.rate / full_at:.2g}{GAP}x)",
            percent(point.accuracy, 2),
            percent(point.degraded, 1),
            percent(point.certified_loss, 2),
            *(percent(share, 1) for share in point.exit_shares),
            *(price(each) for each in point.prices[1:]),
        )
        for point in _some(plan.points, full_at)
    ]
    head = ("requests/s", "accuracy", "degraded", "lost, at most", *stages, *(f"price of {name}" for name in stages[1:]))
    return (
        paragraph(
            "When a stage cannot take all the rows that would profit from it, its price rises until the demand fits: "
            "those that would profit least stop earlier. Prices are found without labels; the accuracy is what comes "
            "of them on the test rows in steady flow."
        )
        + figure(svg, "plan", f"Planned accuracy and who answers, from {rows[0][0]} to {rows[-1][0]} requests a second")
        + table(
            "By arrival rate, and as a multiple of the rate at which degradation begins: share answered by each stage, "
            "and the gain that a visit must promise. Degraded: answered at a cheaper stage than with nothing loaded. "
            "Lost, at most: the bound that holds for these and all lower prices.",
            head,
            rows,
        )
    )


def degradation(report: Report, figures: Mapping[str, str]) -> str:
    """Simulated loads beside the limit and the floor."""
    found = report.degradation
    rows = [
        (
            f"{load.multiple:g} x",
            quantity(load.rate),
            f"{load.requests:,}",
            f"{percent(load.accuracy, 2)} ± {100 * load.accuracy_se:.2f}",
            percent(load.best, 2),
            percent(load.floor, 2),
            "" if load.efficiency is None else f"{load.efficiency:.3f} ± {load.efficiency_se:.3f}",
            percent(load.slo_attainment, 1),
            duration(load.p50_s),
            duration(load.p99_s),
            percent(load.degraded, 1),
            percent(load.shed, 1),
        )
        for load in found.loads
    ]
    head = (
        "load",
        "requests/s",
        "measured",
        "right in time",
        "A*",
        "floor",
        "E",
        "in time",
        "median",
        "p99",
        "degraded",
        "shed",
    )
    routers = f" The spec has {report.routers} routers; one of them with all replicas was simulated." * (report.routers > 1)
    above = any(
        load.efficiency is not None and load.efficiency_se is not None and load.efficiency > 1 + 2 * load.efficiency_se
        for load in found.loads
    )
    notes = (
        "Where E is above 1 the policy did better than any fixed prices: rows that could not be sure of a dear stage still "
        "visited a cheaper one that had room, and were looked at again there."
    )
    shown = ", ".join(f"{load.multiple:g} x: {percent(load.accuracy, 2)}" for load in found.loads)
    return (
        paragraph(
            f"The server's own policy, simulated in virtual time with the measured service times of {found.rows:,} test "
            f"rows that come in shuffled order. Beyond {quantity(found.full_at)} requests a second {found.stage} "
            "cannot take all rows that ask for it; the queues then keep the rows that gain most, and the others are "
            "answered with what they have." + routers
        )
        + figure(
            figures["degradation"],
            "degradation",
            f"Right answers in time by offered load, beside the limit and the floor; {shown}",
            "A*, the fluid limit: the most that sending rows on in the order of their value could reach in steady flow, "
            "whatever visits cost. Floor: everything answered by the first stage.",
        )
        + table(
            "E = (right in time - floor) / (A* - floor): 0 is the cheapest stage for everybody, 1 the limit; ± is one "
            "standard error, over parts of the run. Below the capacity E is under 1 where base prices save cost that "
            "A* ignores.",
            head,
            rows,
        )
        + (paragraph(notes) if above else "")
        + figure(
            figures["latency"],
            "latency",
            "Median and 99th percentile of latency, and the share of requests answered in time, by offered load",
            f"Each request has {duration(found.deadline_s)}; rows that wait for a dear stage may use all of it, "
            "and are then answered with what they have.",
        )
    )


def footer(report: Report) -> str:
    """Files, versions and the command."""
    rows = [(source.file, source.digest[:16], source.role) for source in report.sources]
    return (
        table("Made from", ("file", "SHA-256 of its content", "used for"), rows, words=True)
        + paragraph(f"Command: {report.command}", note=True)
        + paragraph(f"Made with {report.made_with}.", note=True)
    )


def _some(points: tuple[PlanPoint, ...], full_at: float) -> list[PlanPoint]:
    """About `PLAN_ROWS` of the points: the last before anything is full, and an even spread beyond."""
    first = max([index for index, point in enumerate(points) if point.rate <= full_at], default=0)
    wanted = {round(index) for index in np.linspace(first, len(points) - 1, PLAN_ROWS)}
    return [points[index] for index in sorted({0, *wanted})]


def _confidence(report: Report) -> str:
    return (
        percent(1 - report.certificate.delta, 0)
        if report.certificate.delta >= 0.01
        else f"{1 - report.certificate.delta:.4g}"
    )
