"""The two benches that are checks, small: they run the real commands, plant and kill, and find all
as promised.
"""

from __future__ import annotations

import io
from datetime import UTC, datetime

import pytest
from bench import purge as purging
from bench import verify as verifying
from rich.console import Console

AT = datetime(2026, 11, 22, tzinfo=UTC)


@pytest.mark.long
def test_exactly_the_planted_are_found_and_the_rest_holds() -> None:
    """The same as with ten million reads, by the same command."""
    sizes = verifying.VerifySizes(reads=2_000, planted=7)
    results = verifying.document({"machine": {}}, verifying.measure_verify(sizes, seed=1), at=AT)
    assert results["ok"] == dict.fromkeys(results["ok"], True)
    found = results["verify"]
    assert (
        found["planted"]["found"],
        found["planted"]["named"],
        found["planted"]["run_itself_found"],
    ) == (7, 7, 0)
    assert set(found["altered"]) == {"rows_read", "ended_at", "merkle_root", "rows_read and digest"}
    out = io.StringIO()
    verifying.show_verify(results, Console(file=out, width=150))
    assert "found 7 of 7 planted, 0 others" in out.getvalue()


@pytest.mark.long
def test_a_purge_killed_at_work_ends_as_an_undisturbed_one() -> None:
    """The same as with five million rows, by the same command."""
    sizes = purging.PurgeSizes(rows=4_000, files=10, members=200, kills=1)
    results = purging.document(
        {"machine": {}}, purging.measure_purge(sizes, repeats=1, seed=1), at=AT
    )
    assert results["ok"] == dict.fromkeys(results["ok"], True)
    found = results["purge"]
    assert found["killed"]["kills"] == len(found["killed"]["at_file"]) == 1
    assert set(found["ratios"]) == set(purging.PEERS)
    out = io.StringIO()
    purging.show_purge(results, Console(file=out, width=150))
    assert "1 of 1 kills at work" in out.getvalue()
    assert "the same ones: yes" in out.getvalue()
