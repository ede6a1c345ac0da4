"""A purge as it is read: what an officer signs, and what a script takes further."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.strategies import day
from tests.unit.trainer.purge.dataset_contract import erasure

from consentry.domain.errors import InvalidInput, Unavailable
from consentry.trainer.purge.dataset import FilePlan, PurgePlan, PurgeResult, Verified
from consentry.trainer.purge.receipts import (
    KEPT_BY_OLD_VERSIONS,
    old_versions_detail,
    receipts,
    write_receipts,
)
from consentry.trainer.purge.reports import (
    plan_fields,
    plan_text,
    result_fields,
    result_text,
    verified_fields,
    verified_text,
)
from consentry.trainer.purge.session import Applied, check_receipts_file

ANA = "erasure:ana"
DATASET: Any = SimpleNamespace(name="posts", keeps_versions=True)
SELECTOR: Any = SimpleNamespace(order_ids=(ANA,))


@dataclass
class Case:
    """A purge of two rows out of one file, with or without rows of unknown owner."""

    unknown: int

    @property
    def plan(self) -> PurgePlan:
        return PurgePlan(
            version="v1",
            files=(FilePlan("one.parquet", 4, 1000, {ANA: 2}),),
            files_looked_at=3,
            rows_looked_at=12,
            unknown=self.unknown,
        )

    @property
    def result(self) -> PurgeResult:
        return PurgeResult(
            version_before="v1",
            version_after="v2",
            rows_removed={ANA: 2, "excluded:genai_training": 1},
            rows_in_all={ANA: 2},
            versions_first={ANA: "v1"},
            files_rewritten=1,
            bytes_rewritten=1000,
            unknown=self.unknown,
        )


def test_a_plan_shows_files_rows_and_bytes_by_order() -> None:
    """It is what somebody approves."""
    lines = plan_text(Case(unknown=0).plan, SELECTOR).splitlines()

    assert lines[0] == "version v1: 3 files, 12 rows"
    assert lines[2].split() == ["1", "2", "1,000", ANA]
    assert lines[3].split() == ["1", "2", "1,000", "in", "all"]
    fields = plan_fields(DATASET, Case(unknown=0).plan, SELECTOR)
    assert fields["orders"] == {ANA: {"files": 1, "rows": 2, "bytes": 1000}}
    [file] = json.loads(json.dumps(fields))["files"]
    assert file == {"name": "one.parquet", "rows": 4, "bytes": 1000, "covered": {ANA: 2}}


def test_a_plan_says_how_apply_will_end_where_rows_are_of_unknown_owner() -> None:
    """A pipeline that stops on exit status 2 should not stop unforeseen."""
    assert "exit 2" in plan_text(Case(unknown=5).plan, SELECTOR).splitlines()[-1]


def test_a_result_shows_each_receipt_and_what_nobody_ordered() -> None:
    """Rows that only --excluded selects have no receipt, and are gone all the same."""
    result = Case(unknown=1).result
    answers = receipts(
        [erasure("ana")], {}, result, subscriber="s", dataset="posts", completed_at=day(9)
    )

    applied = Applied(result, answers, vacuumed=["0", "1"], old_versions=KEPT_BY_OLD_VERSIONS)

    lines = result_text(DATASET, applied).splitlines()

    assert lines[0] == "posts: 3 rows removed from 1 files"
    assert lines[2].split() == ["DELETED", "2", ANA]
    assert lines[3].split() == ["DELETED", "1", "excluded:genai_training"]
    assert KEPT_BY_OLD_VERSIONS in lines
    assert lines[-1].startswith("1 rows are kept")
    fields = result_fields(DATASET, applied)
    assert fields["vacuumed"] == ["0", "1"]
    assert fields["receipts"][0]["result"] == "DELETED"
    json.dumps(fields)


def test_older_versions_are_named_until_they_are_vacuumed() -> None:
    """The officer must not be told that it is gone while a time traveller can read it."""
    plain: Any = SimpleNamespace(keeps_versions=False)

    assert old_versions_detail(DATASET, is_vacuumed=False) == KEPT_BY_OLD_VERSIONS
    assert old_versions_detail(DATASET, is_vacuumed=True) == ""
    assert old_versions_detail(plain, is_vacuumed=False) == ""


@pytest.mark.parametrize(
    ("left", "outcome"),
    [
        ({}, "clean"),
        ({"rows_left": {ANA: 2}}, "rows are left"),
        ({"old_versions": {"0": 2}}, "rows are left"),
        ({"unreadable": ("one.parquet: damaged",)}, "cannot tell"),
        ({"unknown": 1}, "cannot tell"),
    ],
    ids=str,
)
def test_a_verification_ends_with_its_outcome(left: dict[str, Any], outcome: str) -> None:
    """It is the line that is read first."""
    verified = Verified(version="v2", files=3, rows=12, **({"rows_left": {}} | left))

    assert verified_text(DATASET, verified, SELECTOR).splitlines()[-1] == outcome
    assert verified_fields(DATASET, verified, SELECTOR)["orders"] == [ANA]


class TestReceiptsFile:
    def test_a_file_of_receipts_is_replaced_whole(self, tmp_path: Path) -> None:
        """A killed purge must not leave half a receipt where a whole one was."""
        file = tmp_path / "receipts.json"
        file.write_text("of an earlier run")
        answers = receipts(
            [erasure("ana")],
            {ANA: "legal hold"},
            Unavailable("x", code="y", fix="z"),
            subscriber="",
            dataset="posts",
            completed_at=day(9),
        )

        write_receipts(file, answers)

        [receipt] = json.loads(file.read_text())
        assert (receipt["result"], receipt["detail"]) == ("EXEMPT", "legal hold")
        assert list(tmp_path.iterdir()) == [file]

    def test_a_file_in_a_missing_directory_is_refused(self, tmp_path: Path) -> None:
        """The rows would be gone before the receipts could not be written."""
        check_receipts_file(tmp_path / "receipts.json")
        with pytest.raises(InvalidInput):
            check_receipts_file(tmp_path / "missing" / "receipts.json")
