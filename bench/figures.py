"""The arithmetic of the figures: exact percentiles, medians with spread, open-loop schedules."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

SECOND_MICROS = 1_000_000
RANKS = (50.0, 90.0, 99.0, 99.9)


class CannotMeasure(Exception):
    """Raised when there is no figure, or only one that would mislead.

    Something did not start, did not finish, or lost events.
    """


class NotAsPromised(Exception):
    """Raised when a measurement shows that a promise is broken, whatever the figures are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """A distribution in milliseconds.

    Every percentile is one of the samples, never a mean of two.
    """

    count: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p99_9_ms: float
    max_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The repeats of one measurement: their median, the lowest and the highest."""

    median: float
    low: float
    high: float
    repeats: int


def latency_of(samples_micros: Sequence[int]) -> Latency:
    """Return the distribution of samples in microseconds. Raises CannotMeasure without samples."""
    if not samples_micros:
        raise CannotMeasure("No sample was taken, so there is no latency.")
    samples = np.asarray(samples_micros, dtype=np.float64) / 1000
    percentiles = np.percentile(samples, RANKS, method="inverted_cdf")
    p50, p90, p99, p99_9 = [round(float(value), 3) for value in percentiles]
    return Latency(
        count=len(samples),
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        p99_9_ms=p99_9,
        max_ms=round(float(samples.max()), 3),
    )


def merged(runs: Iterable[Sequence[int]]) -> list[int]:
    """Return all samples of several runs.

    Percentiles are taken of these: a mean of percentiles is no percentile.
    """
    return list(itertools.chain.from_iterable(runs))


def spread_of(values: Sequence[float]) -> Spread:
    """Return the median of some repeats and their ends. Raises CannotMeasure without repeats."""
    if not values:
        raise CannotMeasure("Nothing was repeated, so there is no median.")
    return Spread(
        median=round(statistics.median(values), 2),
        low=round(min(values), 2),
        high=round(max(values), 2),
        repeats=len(values),
    )


def spreads_of(repeats: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Return the spread of each measurement as it stands in the results; see `spread_of`."""
    spreads: dict[str, Spread] = {}
    for name, values in repeats.items():
        spreads[name] = spread_of(values)
    return as_document(spreads)


def ratio_of(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median over the rounds of ours to theirs; above 1 where ours is faster."""
    ratios = [own / peer for own, peer in zip(ours, theirs, strict=True)]
    return round(statistics.median(ratios), 3)


def schedule(*, start: int, rate: float, seconds: float) -> list[int]:
    """Return evenly spaced times in microseconds, `rate` a second, the first at `start`.

    Each is computed from the start and not from the one before, so that rounding never adds up.
    """
    count = round(rate * seconds)
    return [start + round(index * SECOND_MICROS / rate) for index in range(count)]


def rate_of(count: int, seconds: float) -> float:
    """Return the events per second. Raises CannotMeasure if no time has passed."""
    if seconds <= 0:
        raise CannotMeasure(
            f"{count} events in {seconds} s: the clock did not move between start and end."
        )
    return count / seconds


def check_count(what: str, *, expected: int, found: int) -> None:
    """Raise CannotMeasure unless every event arrived exactly once.

    A rate over lost events is no rate.
    """
    if found != expected:
        word = "too many"
        if found < expected:
            word = "lost"
        raise CannotMeasure(
            f"{what}: {expected} expected, {found} found, {abs(expected - found)} {word}."
        )


def as_document(figures: Mapping[str, Latency | Spread]) -> dict[str, dict[str, float]]:
    """Return figures as they stand in the results."""
    return {name: asdict(figure) for name, figure in figures.items()}


def yes_or_no(is_kept: bool) -> str:
    """Return whether a promise is kept, as a word for a person."""
    if is_kept:
        return "yes"
    return "no"


def spread_columns(spread: Mapping[str, float], form: str = ",.0f") -> list[str]:
    """Return the median, the lowest and the highest of a spread, as columns of a table."""
    return [format(spread[part], form) for part in ("median", "low", "high")]
