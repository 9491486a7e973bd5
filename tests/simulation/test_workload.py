"""Arrivals: the laws have the rates and the spread they promise, the grammar reads them, trace files come back.

Counts are compared at 4 standard errors, which a right law exceeds with probability 6e-5 (seeds are fixed).
"""

from math import sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from cascade.errors import ConfigError
from cascade.simulation.workload import DAY_PIECES, GRAMMAR, RAMP_PIECES, draw, parse_workload, run_streams


def arrivals(text, seconds=None, seed=0):
    return draw(parse_workload(text), seconds, seed)


def test_poisson_has_its_rate_and_exponential_gaps():
    drawn = arrivals("poisson:200", 100.0)
    assert abs(len(drawn.instants) - 20_000) < 4 * sqrt(20_000)
    assert kstest(np.diff(drawn.instants) * 200, "expon").pvalue > 1e-3
    assert drawn.phases == ("poisson",)


def test_constant_is_even():
    assert arrivals("constant:4", 1.0).instants.tolist() == [0.125, 0.375, 0.625, 0.875]


def test_step_has_the_rate_of_each_phase():
    drawn = arrivals("step:50@50,400@10,50@5")
    assert drawn.phases == ("1: 50/s", "2: 400/s", "3: 50/s")
    assert drawn.phase_seconds.tolist() == [50, 10, 5]
    for count, expected in zip(np.bincount(drawn.phase), (2500, 4000, 250), strict=True):
        assert abs(count - expected) < 4 * sqrt(expected)


def test_a_silent_phase_has_no_arrivals():
    drawn = arrivals("step:100@2,0@3,100@2")
    assert not ((drawn.instants > 2) & (drawn.instants < 5)).any()
    assert np.bincount(drawn.phase, minlength=3)[1] == 0


def test_a_ramp_follows_its_slope():
    # A ramp from 0 to r over T has the distribution function (t / T)^2.
    drawn = arrivals("ramp:0-400@50")
    assert abs(len(drawn.instants) - 10_000) < 4 * sqrt(10_000)
    assert kstest((drawn.instants / 50) ** 2, "uniform").pvalue > 1e-3
    assert len(drawn.phases) == RAMP_PIECES
    assert drawn.phases[0] == "1: 0-100/s"


def test_ramps_up_and_down_mirror_each_other():
    drawn = arrivals("ramp:50-450@40,450-50@40")
    up, down = np.bincount(drawn.phase).reshape(2, RAMP_PIECES)
    assert (abs(up - down[::-1]) < 4 * np.sqrt(up + down[::-1])).all()


def test_gamma_gaps_have_their_mean_and_spread():
    # se(mean) = sqrt(cv2 / N); the variance of a sample variance of gamma gaps is var^2 (2 + 6 cv2) / N.
    gaps = np.diff(arrivals("gamma:100,4", 500.0).instants) * 100
    count = len(gaps)
    assert abs(gaps.mean() - 1) < 4 * sqrt(4 / count)
    assert abs(gaps.var() - 4) < 4 * 4 * sqrt((2 + 6 * 4) / count)


def test_gamma_begins_in_equilibrium():
    # 3,000 runs of 0.05 s: 5 arrivals each on average from the very beginning, with a variance below 5 cv2.
    counts = [len(arrivals("gamma:100,4", 0.05, seed).instants) for seed in range(3000)]
    assert abs(np.mean(counts) - 5) < 4 * sqrt(5 * 4 / 3000)


def test_bursts_have_both_rates_and_their_sojourns():
    drawn = arrivals("burst:20@4,500@0.5", 2000.0)
    assert drawn.phases in (("calm", "burst"), ("burst", "calm"))
    rate = dict(zip(drawn.phases, np.bincount(drawn.phase) / drawn.phase_seconds, strict=True))
    assert abs(rate["calm"] - 20) < 4 * sqrt(20 / 1700)
    assert abs(rate["burst"] - 500) < 4 * sqrt(500 / 200)
    stays = np.diff(drawn.edges)[drawn.labels == drawn.phases.index("burst")]
    assert abs(stays.mean() - 0.5) < 4 * 0.5 / sqrt(len(stays))


def test_bursts_do_not_care_which_state_comes_first():
    np.testing.assert_array_equal(
        arrivals("burst:500@0.5,20@4", 20.0).instants, arrivals("burst:20@4,500@0.5", 20.0).instants
    )


def test_a_day_swings_between_its_rates():
    drawn = arrivals("diurnal:50-450@40", 200.0)
    assert abs(len(drawn.instants) - 250 * 200) < 4 * sqrt(250 * 200)
    rate = np.bincount(drawn.phase) / drawn.phase_seconds
    assert len(rate) == DAY_PIECES // 2
    # The mean of the cosine over the first and the last eighth of a period.
    lowest = 50 + 400 * (1 - np.sin(np.pi / 4) / (np.pi / 4)) / 2
    assert abs(rate[0] - lowest) < 4 * sqrt(lowest / drawn.phase_seconds[0])
    assert abs(rate[-1] - (500 - lowest)) < 4 * sqrt(500 / drawn.phase_seconds[-1])


WORKLOADS = [
    "poisson:80", "constant:80", "step:50@2,200@1,0@1,50@2", "ramp:0-100@3,100-0@2", "burst:20@1,300@0.2", "gamma:80,8",
    "diurnal:5-200@3",
]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(text=st.sampled_from(WORKLOADS), seconds=st.floats(0.01, 12.0), seed=st.integers(0, 2**31))
def test_every_arrival_lies_in_the_run_and_in_a_phase(text, seconds, seed):
    drawn = arrivals(text, seconds, seed)
    own = parse_workload(text).length_s
    assert drawn.seconds == (seconds if own is None else min(seconds, own))
    assert (np.diff(drawn.instants) >= 0).all()
    assert ((drawn.instants >= 0) & (drawn.instants < drawn.seconds)).all()
    assert drawn.edges[0] == 0
    assert drawn.edges[-1] == drawn.seconds
    assert (np.diff(drawn.edges) > 0).all()
    assert drawn.phase_seconds.sum() == pytest.approx(drawn.seconds)
    assert (drawn.phase_seconds > 0).all()
    for place in (drawn.edges[:-1][drawn.labels == phase] for phase in range(len(drawn.phases))):
        assert len(place)
    np.testing.assert_array_equal(drawn.instants, arrivals(text, seconds, seed).instants)


def test_streams_are_independent_and_repeatable():
    first, again = run_streams(3), run_streams(3)
    assert [a.generate_state(2).tolist() for a in first] == [b.generate_state(2).tolist() for b in again]
    assert len({tuple(stream.generate_state(2)) for stream in (*first, *run_streams(4))}) == 6


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("poison:30", "expected one of poisson, constant, step"),
        ("300", "then a colon"),
        ("poisson:fast", "a rate per second, got 'fast'"),
        ("poisson:0", "must be above 0, got 0"),
        ("poisson:-5", "got '-5'"),
        ("step:50@5,400", "expected RATE@SECONDS, got '400'"),
        ("step:50@0", "SECONDS must be above 0"),
        ("ramp:50@5", "expected FROM-TO@SECONDS"),
        ("burst:50@5", "expected two of RATE@MEAN, got 1"),
        ("gamma:300", "expected RATE,CV2"),
        ("diurnal:400-50@10", "LOW must be at most HIGH"),
        ("trace:", "expected FILE"),
    ],
)
def test_a_bad_workload_is_shown_the_grammar(text, said):
    with pytest.raises(ConfigError) as error:
        parse_workload(text)
    assert said in error.value.detail
    assert repr(text) in error.value.detail
    assert GRAMMAR in error.value.detail


def test_numbers_may_be_written_in_any_usual_way():
    parsed = parse_workload(" step: 1e2@.5 , 2.5@1.0 ")
    assert parsed.length_s == 1.5
    assert [segment.start for segment in parsed.segments] == [100, 2.5]


def test_an_endless_workload_needs_a_length():
    with pytest.raises(ConfigError, match="has no end"):
        arrivals("poisson:5")
    with pytest.raises(ConfigError, match="positive number of seconds"):
        arrivals("poisson:5", 0.0)


# -- traces ------------------------------------------------------------------------------------------------------------


AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,3180,8
2023-11-16 18:17:04.0788150,110,27
"""


def test_an_azure_trace_is_read_to_the_tenth_of_a_microsecond(tmp_path):
    (tmp_path / "azure.csv").write_text(AZURE)
    drawn = arrivals(f"trace:{tmp_path / 'azure.csv'}")
    assert drawn.instants.tolist() == pytest.approx([0.0, 0.052, 0.098855], abs=1e-12)
    assert drawn.seconds == pytest.approx(0.098855 * 1.5)


def test_the_zone_of_later_azure_traces_is_passed_over(tmp_path):
    text = AZURE.replace("3.9799600", "3.979960+00:00").replace("4.0319600", "4.031960+00:00")
    (tmp_path / "azure.csv").write_text(text.replace("4.0788150", "4.078815+00:00").replace("\n", "\r\n"))
    assert arrivals(f"trace:{tmp_path / 'azure.csv'}").instants.tolist() == pytest.approx([0.0, 0.052, 0.098855])


def test_plain_instants_count_from_the_first_in_any_order(tmp_path):
    (tmp_path / "plain.txt").write_text("# seconds\n1700000000.5\n1700000002\n\n1700000001\n")
    assert arrivals(f"trace:{tmp_path / 'plain.txt'}").instants.tolist() == [0.0, 0.5, 1.5]


def test_speed_squeezes_a_trace(tmp_path):
    path = tmp_path / "odd, name.txt"
    path.write_text("0\n10\n20\n")
    drawn = arrivals(f"trace:{path},speed=10")
    assert drawn.instants.tolist() == [0.0, 1.0, 2.0]
    assert drawn.seconds == 3.0
    assert arrivals(f"trace:{path},speed=10", 1.5).instants.tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (AZURE + "yesterday,1,2\n", "line 5: expected a time like 2023-11-16 18:17:03.9799600, got 'yesterday'"),
        ("0\n1\nnan\n", "line 3: expected an instant in seconds, or the header TIMESTAMP"),
        ("time,tokens\n0,1\n", "line 1: expected an instant in seconds"),
        ("5\n", "needs at least two instants, it has 1"),
        ("5\n5\n", "all its instants are the same"),
    ],
)
def test_a_bad_trace_is_named_with_its_line(tmp_path, content, said):
    path = tmp_path / "trace.csv"
    path.write_text(content)
    with pytest.raises(ConfigError) as error:
        arrivals(f"trace:{path}")
    assert str(path) in error.value.detail
    assert said in error.value.detail


def test_a_missing_or_binary_trace_is_said_plainly(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ConfigError, match="No such file"):
        arrivals(f"trace:{tmp_path / 'none'}")
    with pytest.raises(ConfigError, match="not a text file"):
        arrivals(f"trace:{tmp_path / 'binary'}")
