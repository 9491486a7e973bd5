"""The section of a ladder's report about clients that watch. Knows results, and neither spec nor file."""

from cascade.report.anytime import FALLS, NAMES, Anytime
from cascade.report.markup import figure, paragraph, table
from cascade.report.numbers import duration, percent


def anytime(found: Anytime | None, svg: str | None) -> str:
    """How right an answer is by the time it is given, and how often it gets worse.

    Args:
        found: what was counted; None where the table has no probabilities.
        svg: the figure of it.
    """
    if found is None or svg is None:
        return paragraph("The outcome table has no class probabilities for some stage, so this cannot be counted.")
    shown = found.rules[list(NAMES).index("steady")]
    steps = "; ".join(
        f"{percent(right, 2)} after {duration(done_s)} ({name})"
        for right, done_s, name in zip(shown.accuracy, found.done_s, found.stages, strict=True)
    )
    rows = [
        (
            NAMES[each.rule],
            *(f"{percent(share, 2)} ± {100 * found.standard_error(share):.2f}" for share in each.falls),
            percent(each.falls_walked[FALLS.index(0.1)], 2),
            percent(each.accuracy[0], 2),
            percent(each.accuracy[-1], 2),
            percent(each.confidence, 2),
        )
        for each in found.rules
    ]
    head = (
        "shown",
        *(f"falls by more than {tau:g}" for tau in FALLS),
        "by more than 0.1, as rows stop",
        "right at first",
        "right in the end",
        "confidence in the end",
    )
    return (
        paragraph(
            "A client that watches is shown the first stage's answer at once and every better one as it comes. The figure "
            "says how many of the answers shown are right by the time given, nothing loaded; before the first stage is done "
            "there is none."
        )
        + figure(
            svg,
            "anytime",
            f"Right answers by time given: {steps}",
            "Times are those of the service profile, a row alone, with the way to a replica and back; rows stop at the "
            "spec's prices. Grey: each stage alone, without the ladder.",
        )
        + table(
            f"How often an answer gets worse: share of {found.rows:,} test rows whose probability of the true class falls "
            "between any two stages by more than so much, if every row goes to the last; ± one standard error. Steady keeps "
            "the surer of answers that agree, best so far the surest of all, which is right less often than it says; "
            "product multiplies the stages' scores.",
            head,
            rows,
        )
    )
