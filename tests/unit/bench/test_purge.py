"""The check of purges: it kills the real command at work, and says so when a row is left, lost or
miscounted.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bench import __main__ as command
from bench.purge import (
    JOURNAL,
    Expected,
    PurgeCase,
    PurgeSizes,
    compute_expected,
    digest_of,
    document,
    inspect_copy,
    inspect_rest,
    is_within_swaps,
    make_case,
    make_copy,
)

AT = datetime(2026, 11, 22, tzinfo=UTC)
SIZES = PurgeSizes(rows=4_000, files=10, members=200, kills=1)


@pytest.fixture
def case(tmp_path: Path) -> PurgeCase:
    """Ten small files, and a fresh copy of them."""
    made = make_case(tmp_path, SIZES, seed=1)
    make_copy(made)
    return made


def told(end: dict[str, Any] | None = None, **killed: Any) -> dict[str, Any]:
    """Results in which all is as promised, but for what is told of the last end and of the
    kills.
    """
    fine: dict[str, Any] = {
        "rows": 9,
        "rows_of_the_gone": 0,
        "digest": "d",
        "is_counted_rightly": True,
    }
    fine |= {"exit_statuses": {"apply": 0, "verify": 0}}
    kills = {
        "kills": 2,
        "broken_files": 0,
        "rows_seen": [9, 10],
        "left": [fine | (end or {})],
    } | killed
    expected = {"rows_before": 10, "rows_after": 9, "digest": "d"}
    return {"sizes": {"kills": 2}, "expected": expected, "undisturbed": [fine], "killed": kills}


def test_what_has_to_go_is_counted_by_order(case: PurgeCase) -> None:
    """A purge that says the wrong numbers has to be held against the right ones."""
    expected = compute_expected(case)
    members = pa.concat_tables(
        [pq.ParquetFile(path).read() for path in case.source.rglob("*.parquet")]
    )["member_id"]
    names = members.to_pylist()
    gone = set(case.gone.to_pylist())
    assert len(gone) == 20 + 1
    assert expected.rows_after == sum(name not in gone for name in names)
    (ordered,) = case.ordered.to_pylist()
    rest = 4_000 - expected.rows_after - names.count(ordered)
    assert expected.removed == {
        f"e:{ordered}": names.count(ordered),
        "excluded:genai_training": rest,
    }


def test_a_row_that_is_left_lost_or_changed_is_seen(case: PurgeCase) -> None:
    """As many rows as there should be are not the rows that there should be."""
    found = inspect_rest(case)
    assert (found["rows"], found["rows_of_the_gone"]) == (
        4_000,
        4_000 - compute_expected(case).rows_after,
    )
    rows = pa.table({"row": [2, 1], "text": ["b", "a"]})
    assert digest_of(rows) == digest_of(rows.take([1, 0]))
    assert (
        len(
            {
                digest_of(rows),
                digest_of(rows.slice(1)),
                digest_of(pa.table({"row": [2, 1], "text": ["b", "c"]})),
            }
        )
        == 3
    )


def test_a_file_that_is_torn_or_missing_at_a_kill_is_counted(case: PurgeCase) -> None:
    """That is what kills are for."""
    assert (inspect_copy(case, 1 << 62).broken_files, inspect_copy(case, 1 << 62).rows) == (
        0,
        4_000,
    )
    torn, missing, *_ = case.copy.rglob("*.parquet")
    torn.write_bytes(torn.read_bytes()[:-9])
    missing.unlink()
    found = inspect_copy(case, 1 << 62)
    assert (found.broken_files, found.rows) == (2, 4_000 - 800)


@pytest.mark.parametrize(
    ("lines", "is_so"),
    [
        ([], False),
        (['{"do": "stage"}\n', '{"do": "stage"}\n', '{"do": "done"}\n', '{"do": "drop"}\n'], False),
        (['{"do": "stage"}\n', '{"do": "stage"}\n', '{"do": "done"}\n'], True),
        (['{"do": "sta'], False),
    ],
)
def test_swaps_that_nobody_settled_are_seen_in_the_journal(
    lines: list[str], is_so: bool, tmp_path: Path
) -> None:
    """A line that was torn off was never acted on."""
    path = tmp_path / JOURNAL
    path.parent.mkdir()
    path.write_text("".join(lines))
    assert is_within_swaps(tmp_path) is is_so


@pytest.mark.parametrize(
    ("found", "name"),
    [
        (told({"rows_of_the_gone": 1}), "no_row_of_the_gone_left"),
        (told({"rows": 8}), "no_other_row_lost"),
        (told({"digest": "e"}), "no_other_row_lost"),
        (told({"is_counted_rightly": False}), "counted_rightly"),
        (told({"exit_statuses": {"apply": 0, "verify": 2}}), "every_command_exits_0"),
        (told(broken_files=1), "every_file_whole_at_every_kill"),
        (told(rows_seen=[8, 10]), "every_file_whole_at_every_kill"),
        (told(kills=1), "all_kills_hit_at_work"),
    ],
)
def test_what_is_not_as_promised_is_said(found: dict[str, Any], name: str) -> None:
    """A check that cannot fail shows nothing."""
    assert set(document({}, told(), at=AT)["ok"].values()) == {True}
    ok = document({}, found, at=AT)["ok"]
    assert [check for check, is_so in ok.items() if not is_so] == [name]


def test_expected_figures_can_be_kept(case: PurgeCase) -> None:
    """They are part of a JSON document."""
    expected: Expected = compute_expected(case)
    assert json.loads(json.dumps(expected._asdict()))["digest"] == expected.digest


def test_the_command_purges_where_it_is_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five million rows in 200 files and 20 kills are what was promised."""
    called: list[tuple[int, int, int]] = []
    monkeypatch.setattr(
        command,
        "run_purge",
        lambda options, _: called.append((options.rows, options.files, options.kills)),
    )
    assert command.main(["purge"]) == 0
    assert command.main(["purge", "--rows", "7000", "--files", "8", "--kills", "2"]) == 0
    assert called == [(5_000_000, 200, 20), (7_000, 8, 2)]
