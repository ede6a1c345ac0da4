"""Watermarks: set by the frontier thread, reached by the hot path, and never claimed early."""

from __future__ import annotations

from tests.strategies import day

from consentry.processor.frontiers import ReachedWatermark, Watermark, Watermarks


def test_a_watermark_is_reported_only_after_it_was_reached() -> None:
    """A frontier that runs ahead of the records makes a stale trainer believe that it is fresh."""
    watermarks, watermark = Watermarks(), Watermark(day(1), 10)
    watermarks.own(frozenset({3}))
    watermarks.set({3: watermark})

    assert watermarks.take(0.0) == {}
    watermarks.reach(3, ReachedWatermark(watermark, "life", 10, False))

    assert watermarks.take(0.0) == {3: ReachedWatermark(watermark, "life", 10, False)}
    assert watermarks.take(0.0) == {}


def test_a_pending_watermark_is_not_pushed_out_by_a_later_one() -> None:
    """On a busy partition the later one would be pushed out as well, and so on: no frontier
    ever.
    """
    watermarks = Watermarks()
    watermarks.own(frozenset({3}))
    watermarks.set({3: Watermark(day(1), 10)})
    watermarks.set({3: Watermark(day(2), 20)})

    assert watermarks.due() == [(3, Watermark(day(1), 10))]


def test_watermarks_of_partitions_that_are_not_owned_are_dropped() -> None:
    """The new owner speaks for a partition, not the old one."""
    watermarks = Watermarks()
    watermarks.own(frozenset({3, 4}))
    watermarks.set({3: Watermark(day(1), 10), 4: Watermark(day(1), 10), 5: Watermark(day(1), 10)})

    watermarks.own(frozenset({4}))

    assert watermarks.due() == [(4, Watermark(day(1), 10))]


def test_reaching_another_watermark_than_the_pending_one_reports_nothing() -> None:
    """It was set for an earlier ownership."""
    watermarks = Watermarks()
    watermarks.own(frozenset({3}))
    watermarks.set({3: Watermark(day(2), 20)})

    watermarks.reach(3, ReachedWatermark(Watermark(day(1), 10), "life", 10, False))

    assert watermarks.take(0.0) == {}
