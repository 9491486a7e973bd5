"""The figure of a certificate: the curves are the certificate's, and what is marked is what was chosen."""

import numpy as np
import pytest

from cascade.calibration.certify import certify, path_through
from cascade.report.risk import point_at, risk_figure
from cascade.report.style import pyplot
from tests.calibration.judged_cases import difficulty_ladder

PRICES = (0.005, 0.02, 0.08)


def made(max_loss: float, unsolvable: float = 0.0):
    judged = difficulty_ladder(4000, unsolvable=unsolvable, seed=2)
    return certify(judged, max_loss=max_loss, confidence=0.9, path=path_through(judged.cost, PRICES))


@pytest.fixture
def certificate():
    return made(0.2)


def drawn(certificate, prices):
    figure = risk_figure(certificate, prices)
    lines = {str(line.get_label()): line for line in figure.axes[0].lines}
    pyplot().close(figure)
    return lines


def test_curves_are_loss_and_both_bounds(certificate) -> None:
    lines = drawn(certificate, PRICES)
    for label, values in (
        ("lost on the test rows", [point.loss for point in certificate.path]),
        ("bound at exactly these prices", [point.bound for point in certificate.path]),
        ("bound for these and all lower prices, mixed at will", [point.bound_below for point in certificate.path]),
    ):
        np.testing.assert_allclose(lines[label].get_xdata(), [point.cost for point in certificate.path])
        np.testing.assert_allclose(lines[label].get_ydata(), 100 * np.array(values))


def test_the_chosen_point_and_the_spec_are_marked(certificate) -> None:
    lines = drawn(certificate, PRICES)
    own = point_at(certificate, PRICES)
    assert own is not None
    assert lines["prices of the spec"].get_ydata() == [100 * own.loss]
    chosen = certificate.path[certificate.chosen]
    assert lines["cheapest certified point, confidence 0.9"].get_xdata() == [chosen.cost]


def test_what_is_not_there_is_not_marked() -> None:
    lines = drawn(made(0.001, unsolvable=0.2), (0.0, 0.9, 0.01))
    assert not any("certified" in label or "spec" in label for label in lines)


def test_a_point_is_found_by_its_prices_alone(certificate) -> None:
    point = certificate.path[7]
    assert point_at(certificate, (0.5, *point.prices[1:])) == point
    assert point_at(certificate, (0.0, 0.123, 0.456)) is None
