"""The checks before a purge: it deletes what was asked for, or nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.strategies import WORLD, day, policy, terms
from tests.unit.trainer.purge.dataset_contract import erasure, of_scope

from consentry.domain.errors import InvalidInput, Refused, Unavailable
from consentry.domain.orders import Receipt, Result
from consentry.trainer.deciding.decider import SnapshotDecider
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.trainer.purge.dataset import Progress, no_progress
from consentry.trainer.purge.parquet import ParquetDirectory
from consentry.trainer.purge.session import (
    ApplyOptions,
    KnownMembers,
    PurgeSession,
    check_order_ids,
    check_purpose,
    check_scopes,
    check_version,
    parse_exemptions,
    select_orders,
    translate_errors,
)

ORDERS = [erasure("ana"), erasure("bob")]


def raise_translated(error: Exception) -> None:
    """Let work on a data set end with this error."""
    with translate_errors():
        raise error


class TestOrders:
    def test_all_orders_are_taken_where_none_is_named(self) -> None:
        """The plain case: everything that is owed."""
        assert select_orders(ORDERS, []) == ORDERS

    def test_only_the_named_orders_are_taken_each_once(self) -> None:
        """An officer who names one order means that one."""
        assert select_orders(ORDERS, ["erasure:bob", "erasure:bob"]) == [ORDERS[1]]

    def test_an_order_that_nobody_knows_is_refused(self) -> None:
        """A slip of the finger would purge nothing, and look like success."""
        with pytest.raises(InvalidInput, match="'erasure:bo'"):
            select_orders(ORDERS, ["erasure:bo"])
        with pytest.raises(InvalidInput, match="'erasure:bo'"):
            check_order_ids({"erasure:bo": "legal hold"}, ORDERS)

    def test_orders_about_a_jurisdiction_need_records_of_members(self) -> None:
        """By the rows alone most residents would be missed."""
        check_scopes(ORDERS)
        with pytest.raises(Refused) as refusal:
            check_scopes([*ORDERS, of_scope("HK")])

        assert refusal.value.code == "purge.no_members"


class TestExemptions:
    def test_an_exemption_gives_a_reason_for_an_order(self) -> None:
        """The reason stands in the receipt."""
        assert parse_exemptions(["dsr-1=legal hold = 7 "]) == {"dsr-1": "legal hold = 7"}

    @pytest.mark.parametrize("text", ["dsr-1", "dsr-1=", "dsr-1= ", "=why"])
    def test_an_exemption_without_order_or_reason_is_refused(self, text: str) -> None:
        """Rows would stay, and nobody could say why."""
        with pytest.raises(InvalidInput, match="ORDER=REASON"):
            parse_exemptions([text])


def test_a_purpose_that_no_policy_names_is_refused() -> None:
    """Everybody is excluded from it, so every row would be deleted."""
    snapshot = Snapshot(4, WORLD)
    snapshot.apply_control(policy(1, terms("*"), on=1))

    check_purpose(None, snapshot)
    check_purpose("genai_training", snapshot)
    with pytest.raises(Refused, match="genai_training") as refusal:
        check_purpose("gen_training", snapshot)

    assert refusal.value.code == "purge.purpose_unknown"


def test_a_data_set_that_was_written_to_since_the_plan_is_left_alone(tmp_path: Path) -> None:
    """What was approved is not what would be done."""
    dataset = ParquetDirectory(tmp_path)

    check_version(dataset, dataset.version())
    with pytest.raises(Unavailable) as refusal:
        check_version(dataset, "another")

    assert refusal.value.code == "purge.dataset_changed"


def test_an_exempt_order_selects_no_rows_and_the_excluded_come_last(tmp_path: Path) -> None:
    """The rows of an exempt order stay, whatever else is purged."""
    snapshot = Snapshot(4, WORLD)
    session = PurgeSession(
        dataset=ParquetDirectory(tmp_path),
        orders=ORDERS,
        snapshot=snapshot,
        decider=SnapshotDecider(snapshot),
        excluded="genai_training",
        purge_unknown=False,
    )

    selector = session.selector({"erasure:ana": "legal hold"}, now=day(9))

    assert list(selector.order_ids) == ["erasure:bob", "excluded:genai_training"]


class TestErrors:
    def test_what_arrow_says_is_not_repeated(self) -> None:
        """Its texts may quote rows, and errors go into logs."""
        with pytest.raises(Unavailable) as refusal:
            raise_translated(pa.ArrowInvalid("could not convert 'ana is ill' to integer"))

        assert refusal.value.code == "purge.failed"
        assert "ana" not in str(refusal.value)
        assert "ArrowInvalid" in str(refusal.value)

    def test_what_the_disk_says_is_repeated(self) -> None:
        """A full disk can be mended once its name is known."""
        full = OSError(28, "No space left on device", "part-0.parquet")

        with pytest.raises(Unavailable, match=r"left on device \(part-0.parquet\)"):
            raise_translated(full)


def test_without_records_an_order_about_a_jurisdiction_opens_no_session(tmp_path: Path) -> None:
    """Its residents are not in the rows: most of them would be missed."""
    dataset = ParquetDirectory(tmp_path)
    snapshot = Snapshot(4, WORLD)
    members = KnownMembers(snapshot, SnapshotDecider(snapshot))

    PurgeSession.open(dataset, [of_scope("HK")], members)
    with pytest.raises(Refused) as refusal:
        PurgeSession.open(dataset, [of_scope("HK")], None)

    assert refusal.value.code == "purge.no_members"


class TestApply:
    def test_each_order_gets_a_receipt_in_the_file_and_by_kafka(self, tmp_path: Path) -> None:
        """The rows are gone: somebody has to be able to prove it."""
        sent: list[Receipt] = []
        options = ApplyOptions(
            exemptions={"erasure:bob": "legal hold"},
            subscriber="trainer",
            receipts_file=tmp_path / "receipts.json",
        )

        applied = session_of(tmp_path / "posts").apply(
            options, clock=lambda: day(9), send=sent.extend, progress=no_bar
        )

        assert read_dataset_texts(tmp_path / "posts") == ["b", "c"]
        assert [receipt.result for receipt in sent] == [Result.DELETED, Result.EXEMPT]
        assert applied.receipts == sent
        assert len(json.loads((tmp_path / "receipts.json").read_text())) == 2

    def test_a_purge_that_fails_is_answered_with_failed(self, tmp_path: Path) -> None:
        """Silence would look like work that is still under way."""
        sent: list[Receipt] = []
        options = ApplyOptions(exemptions={}, subscriber="trainer", if_version="another")

        with pytest.raises(Unavailable, match="not another"):
            session_of(tmp_path / "posts").apply(
                options, clock=lambda: day(9), send=sent.extend, progress=no_bar
            )

        assert read_dataset_texts(tmp_path / "posts") == ["a", "b", "c"]
        assert [(receipt.result, receipt.detail) for receipt in sent] == [
            (Result.FAILED, "purge.dataset_changed")
        ] * 2

    def test_nothing_is_removed_where_there_are_no_versions_to_vacuum(self, tmp_path: Path) -> None:
        """Whoever asks for it takes the directory for a table."""
        options = ApplyOptions(exemptions={}, vacuum=True)
        with pytest.raises(Refused, match="keeps no old versions"):
            session_of(tmp_path / "posts").apply(
                options, clock=lambda: day(9), send=lambda _: None, progress=no_bar
            )
        assert read_dataset_texts(tmp_path / "posts") == ["a", "b", "c"]


@contextmanager
def no_bar() -> Iterator[Progress]:
    """Shows no progress."""
    yield no_progress


def session_of(directory: Path) -> PurgeSession:
    """A session over a directory with a row of each of three members."""
    directory.mkdir()
    table = pa.table({"member_id": ["ana", "bob", "cleo"], "text": ["a", "b", "c"]})
    pq.write_table(table, directory / "one.parquet")
    return PurgeSession.open(ParquetDirectory(directory), ORDERS, None)


def read_dataset_texts(directory: Path) -> list[str]:
    """The texts that are left."""
    texts: list[str] = pq.read_table(directory / "one.parquet")["text"].to_pylist()
    return texts
