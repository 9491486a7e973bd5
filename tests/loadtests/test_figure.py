"""The figures of a verdict: what they show, and that they can be drawn when little is there."""

import pytest

from cascade.report.style import pyplot, save
from loadtests.figure import load_figure, step_figure
from loadtests.judge import judge_runs
from tests.loadtests.recorded import UNIT, all_good, good, limits


@pytest.fixture(scope="module")
def verdict():
    return judge_runs(all_good(), limits(), predict=lambda recording: recording)


def texts(axes):
    return {each.get_text() for each in axes.texts}


def test_the_figure_shows_every_system_the_limits_and_the_prediction(verdict, tmp_path):
    figure = load_figure(verdict)
    near, far = figure.axes
    assert texts(far) == {"A*", "floor", "top", "static", "cascade", "simulated"}
    assert texts(near) == {"stage 0 is full"}
    points = {len(line.get_xdata()): line for line in far.lines}
    assert list(points[8].get_ydata())[-1] == pytest.approx(66, abs=3)
    paths = save(figure, tmp_path / "load")
    assert [path.suffix for path in paths] == [".svg", ".png"]
    assert all(path.stat().st_size > 5000 for path in paths)


def test_the_candidate_has_intervals(verdict):
    figure = load_figure(verdict)
    assert sum(container.has_yerr for container in figure.axes[1].containers) == 1
    pyplot().close(figure)


def test_the_figure_of_nothing_can_be_drawn(tmp_path):
    assert save(load_figure(judge_runs({}, limits())), tmp_path / "nothing")


def test_the_step_is_drawn_over_its_time(verdict, tmp_path):
    run = verdict.evidence.named("step")[0]
    figure = step_figure(run)
    load = figure.axes[0].patches[0].get_data()
    assert load.edges[-1] == run.recording.arrivals.seconds
    assert max(load.values) == pytest.approx(8 * UNIT, rel=0.3)
    assert len(save(figure, tmp_path / "step")) == 2


def test_a_step_without_answers_is_drawn_too(tmp_path):
    from loadtests.evidence import Run
    from loadtests.phases import measure
    from tests.loadtests.recorded import refuse

    lost = refuse(lambda run: run.row >= 0)(good("step"))
    assert save(step_figure(Run(lost, measure(lost, limits()))), tmp_path / "step")
