"""Marks: what the frontier thread asks for, the hot path reaches, and nobody claims early."""

from __future__ import annotations

from tests.strategies import day

from consentry.processor.frontiers import ReachedWatermark, Watermark, Watermarks


def test_a_mark_is_told_only_once_it_was_reached() -> None:
    """A frontier that runs ahead of the records makes a stale trainer believe that it is fresh."""
    marks, mark = Watermarks(), Watermark(day(1), 10)
    marks.own(frozenset({3}))
    marks.set({3: mark})

    assert marks.take(0.0) == {}
    marks.reach(3, ReachedWatermark(mark, "life", 10, False))

    assert marks.take(0.0) == {3: ReachedWatermark(mark, "life", 10, False)}
    assert marks.take(0.0) == {}


def test_a_pending_mark_is_not_pushed_out_by_a_later_one() -> None:
    """On a busy partition the later one would be pushed out as well, and so on: no frontier
    ever.
    """
    marks = Watermarks()
    marks.own(frozenset({3}))
    marks.set({3: Watermark(day(1), 10)})
    marks.set({3: Watermark(day(2), 20)})

    assert marks.due() == [(3, Watermark(day(1), 10))]


def test_marks_of_partitions_that_are_not_owned_are_dropped() -> None:
    """The new owner speaks for a partition, not the old one."""
    marks = Watermarks()
    marks.own(frozenset({3, 4}))
    marks.set({3: Watermark(day(1), 10), 4: Watermark(day(1), 10), 5: Watermark(day(1), 10)})

    marks.own(frozenset({4}))

    assert marks.due() == [(4, Watermark(day(1), 10))]


def test_reaching_another_mark_than_the_pending_one_tells_nothing() -> None:
    """It was set for an earlier ownership."""
    marks = Watermarks()
    marks.own(frozenset({3}))
    marks.set({3: Watermark(day(2), 20)})

    marks.reach(3, ReachedWatermark(Watermark(day(1), 10), "life", 10, False))

    assert marks.take(0.0) == {}
