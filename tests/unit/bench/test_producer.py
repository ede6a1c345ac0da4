"""The producer's benchmark: what it says follows from what it measured, and the raw peer sends the
same events.
"""

from __future__ import annotations

import io
from datetime import UTC, datetime

import pytest
from bench import __main__ as command
from bench.producer import WAYS, Timed, document, prepare, show, summary
from rich.console import Console
from tests.strategies import new_catalog

from consentry.wire.events import write_event
from consentry.wire.schemas import schema

AT = datetime(2026, 11, 22, tzinfo=UTC)


def runs(seconds: float, cpu_seconds: float) -> list[Timed]:
    """Three rounds, the middle one as told."""
    return [Timed(1000, seconds * factor, cpu_seconds * factor) for factor in (0.5, 1.0, 4.0)]


def found(sdk_seconds: float) -> dict[str, object]:
    """A summary in which the raw peers took one second."""
    ours, theirs = runs(sdk_seconds, 0.5), runs(1.0, 1.0)
    return summary(
        {
            "sdk": ours,
            "raw": theirs,
            "sdk_without_headers": runs(1.0, 0.5),
            "raw_without_headers": theirs,
        }
    )


def test_the_raw_peer_gets_the_same_events() -> None:
    """A peer that sends less is quicker for nothing."""
    catalog = new_catalog()
    prepared = prepare(200, seed=1, now=1_760_000_000_000_000)
    for event, (name, fields) in zip(prepared.events, prepared.fields, strict=True):
        assert catalog.frame_of(name) + schema(name).encode(fields) == write_event(event, catalog)


def test_a_ratio_is_the_median_of_pairs_and_above_one_where_ours_is_quicker() -> None:
    """The wrong way round it would praise what is slow."""
    told = found(2.0)
    assert told["sdk_to_raw"] == {"rate": 0.5, "cpu": 2.0}
    assert told["sdk_without_headers_to_raw_without_headers"] == {"rate": 1.0, "cpu": 2.0}
    assert set(told) == {*WAYS, "sdk_to_raw", "sdk_without_headers_to_raw_without_headers"}


@pytest.mark.parametrize(("seconds", "is_within"), [(1.2, True), (1.3, False)])
def test_what_is_wanted_is_said_and_told(seconds: float, is_within: bool) -> None:
    """A figure without what was promised leaves its reader alone."""
    results = document({"machine": {}}, found(seconds), at=AT)
    assert results["ok"] == {"within_20_percent_of_raw": is_within}
    out = io.StringIO()
    show(results, Console(file=out, width=150))
    assert (
        f"Within 20 % of raw, with headers and without: {'yes' if is_within else 'no'}"
        in out.getvalue()
    )


def test_the_command_measures_the_producer_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Asked for one thing it must not take minutes for all."""
    called: list[str] = []
    monkeypatch.setattr(command, "run_producer", lambda *_: called.append("producer"))
    assert command.main(["producer", "--quick"]) == 0
    assert called == ["producer"]
