"""Arithmetic of the figures: exact percentiles over all samples, medians with spread, the open-loop
schedule.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

SECOND_MICROS = 1_000_000
RANKS = (50.0, 90.0, 99.0, 99.9)


class CannotMeasure(Exception):
    """No figure, or one that would mislead: something did not start, did not finish, or lost
    events.
    """


class NotAsPromised(Exception):
    """It was measured, and what was found is not what is promised, whatever the figures are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """A distribution in milliseconds. Every percentile is one of the samples, never a mean of
    two.
    """

    count: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p99_9_ms: float
    max_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Repeats of one measurement: the middle one, and how far apart they lie."""

    median: float
    low: float
    high: float
    repeats: int


def latency_of(samples_micros: Sequence[int]) -> Latency:
    """The distribution of all samples, in microseconds. Raises CannotMeasure if there are none."""
    if not samples_micros:
        raise CannotMeasure("No sample was taken, so there is no latency to tell.")
    samples = np.asarray(samples_micros, dtype=np.float64) / 1000
    p50, p90, p99, p99_9 = (
        round(float(value), 3) for value in np.percentile(samples, RANKS, method="inverted_cdf")
    )
    return Latency(
        count=len(samples),
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        p99_9_ms=p99_9,
        max_ms=round(float(samples.max()), 3),
    )


def merged(runs: Iterable[Sequence[int]]) -> list[int]:
    """All samples of several runs.

    Percentiles are taken of these: a mean of percentiles is no percentile.
    """
    return [sample for run in runs for sample in run]


def spread_of(values: Sequence[float]) -> Spread:
    """The median of some repeats and their ends. Raises CannotMeasure if there are none."""
    if not values:
        raise CannotMeasure("Nothing was repeated, so there is no median to tell.")
    return Spread(
        median=round(statistics.median(values), 2),
        low=round(min(values), 2),
        high=round(max(values), 2),
        repeats=len(values),
    )


def schedule(*, start: int, rate: float, seconds: float) -> list[int]:
    """Intended times in microseconds: `rate` a second for so long, evenly, the first at `start`.

    Each is computed from the start and not from its neighbour, so that rounding never adds up.
    """
    return [start + round(place * SECOND_MICROS / rate) for place in range(round(rate * seconds))]


def rate_of(count: int, seconds: float) -> float:
    """Events per second. Raises CannotMeasure for a time that is none."""
    if seconds <= 0:
        raise CannotMeasure(
            f"{count} events in {seconds} s: the clock did not move between start and end."
        )
    return count / seconds


def check_count(what: str, *, expected: int, found: int) -> None:
    """Raise CannotMeasure unless every event arrived exactly once: a rate over lost events is no
    rate.
    """
    if found != expected:
        word = "lost" if found < expected else "too many"
        raise CannotMeasure(
            f"{what}: {expected} expected, {found} found, {abs(expected - found)} {word}."
        )


def as_document(figures: Mapping[str, Latency | Spread]) -> dict[str, dict[str, float]]:
    """Figures as they stand in the results."""
    return {name: asdict(figure) for name, figure in figures.items()}
