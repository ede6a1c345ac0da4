"""A figure that is computed wrongly is worse than none: somebody decides by it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from bench.figures import (
    CannotMeasure,
    check_count,
    latency_of,
    merged,
    rate_of,
    schedule,
    spread_of,
)
from hypothesis import given
from hypothesis import strategies as st

SAMPLES = st.lists(st.integers(0, 10**9), min_size=1, max_size=300)


class TestPercentiles:
    def test_a_hundred_samples_have_the_ranks_that_their_names_say(self) -> None:
        """The p99 of a hundred samples is the ninety-ninth, not something between two of them."""
        found = latency_of([1000 * value for value in range(1, 101)])

        assert (found.count, found.p50_ms, found.p90_ms, found.p99_ms) == (100, 50.0, 90.0, 99.0)
        assert found.p99_9_ms == found.max_ms == 100.0

    @given(SAMPLES)
    def test_every_percentile_is_a_sample_and_they_ascend(self, samples: list[int]) -> None:
        """An interpolated p99 would tell of an event that nobody ever waited for."""
        found = latency_of(samples)
        figures = [found.p50_ms, found.p90_ms, found.p99_ms, found.p99_9_ms, found.max_ms]

        assert figures == sorted(figures)
        assert set(figures) <= {round(sample / 1000, 3) for sample in samples}
        assert found.count == len(samples)

    @given(st.lists(SAMPLES, min_size=1, max_size=4))
    def test_merged_runs_are_one_distribution(self, runs: list[list[int]]) -> None:
        """A mean of percentiles hides the bad run; all samples together do not."""
        found = latency_of(merged(runs))

        assert found.count == sum(map(len, runs))
        assert found.max_ms == max(latency_of(run).max_ms for run in runs)

    def test_one_slow_event_in_ten_thousand_shows_in_the_maximum_only(self) -> None:
        """Whoever reads p99.9 has to know what it leaves out."""
        found = latency_of([1000] * 9_999 + [5_000_000])

        assert (found.p99_9_ms, found.max_ms) == (1.0, 5000.0)

    def test_no_sample_is_no_latency(self) -> None:
        """Zero would read as the best result ever."""
        with pytest.raises(CannotMeasure):
            latency_of([])


class TestSchedule:
    def test_intended_times_are_even_and_never_drift(self) -> None:
        """A rate whose interval is no whole microsecond must still end on time."""
        found = schedule(start=1_000_000, rate=3_000, seconds=20)

        assert len(found) == 60_000
        assert found[0] == 1_000_000
        assert found[-1] == 1_000_000 + round(59_999 * 1_000_000 / 3_000)
        assert {later - earlier for earlier, later in pairwise(found)} == {333, 334}

    @given(st.integers(0, 10**15), st.floats(1, 50_000), st.floats(0.1, 2))
    def test_all_times_lie_in_the_asked_span(self, start: int, rate: float, seconds: float) -> None:
        """Load outside the span would be counted to another phase."""
        found = schedule(start=start, rate=rate, seconds=seconds)

        assert len(found) == round(rate * seconds)
        assert all(start <= at <= start + seconds * 1_000_000 + 1_000_000 / rate for at in found)


class TestRates:
    def test_the_median_of_repeats_comes_with_its_ends(self) -> None:
        """One lucky repeat must not be quoted as the rate."""
        found = spread_of([30.0, 10.0, 20.0])

        assert (found.median, found.low, found.high, found.repeats) == (20.0, 10.0, 30.0, 3)

    def test_nothing_is_divided_by_no_time(self) -> None:
        """A clock that stood still makes no rate."""
        assert rate_of(10, 2.0) == 5.0
        with pytest.raises(CannotMeasure):
            rate_of(10, 0.0)
        with pytest.raises(CannotMeasure):
            spread_of([])

    @pytest.mark.parametrize(("found", "word"), [(99, "1 lost"), (101, "1 too many")])
    def test_lost_or_doubled_events_are_an_error(self, found: int, word: str) -> None:
        """The fastest way to process events is to drop them."""
        check_count("events", expected=100, found=100)
        with pytest.raises(CannotMeasure, match=word):
            check_count("events", expected=100, found=found)
