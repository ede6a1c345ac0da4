"""`consentry purge` as it is run: by hand with a file of orders, and with the orders and receipts
of Kafka.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import deltalake
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.stack import CONSENTRY, World, erased, lives_in, opted_out, pause, wait_for

from consentry.domain.controls import Reach
from consentry.wire.purge_orders import read_order, read_receipt
from consentry.wire.schemas import PURGE_ORDERS, RECEIPTS


def write(directory: Path, **columns: list[Any]) -> None:
    """A data set of one file."""
    directory.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), directory / "a.parquet")


def members(directory: Path) -> list[str]:
    """Whose rows are left."""
    return sorted(
        str(one) for one in pq.read_table(directory / "a.parquet")["member_id"].to_pylist()
    )


class TestByHand:
    """Without any stack."""

    @pytest.fixture
    def posts(self, tmp_path: Path) -> Path:
        """Rows of three members, and an order for one of them in orders.json."""
        write(tmp_path / "posts", member_id=["ana", "bob", "ana", "cleo"], text=list("abcd"))
        order = {
            "order_id": "dsr-1",
            "because": "ERASURE",
            "recorded_at": "2026-01-01T00:00:00Z",
            "member": "ana",
        }
        (tmp_path / "orders.json").write_text(json.dumps([order]))
        return tmp_path / "posts"

    def run(self, posts: Path, *arguments: str, status: int = 0) -> str:
        """Run one purge command on the data set; what it printed."""
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("CONSENTRY_")
        }
        done = subprocess.run(
            [
                str(CONSENTRY),
                "purge",
                arguments[0],
                str(posts),
                "--orders",
                "../orders.json",
                *arguments[1:],
            ],
            cwd=posts if posts.is_dir() else posts.parent,
            env=environment | {"COLUMNS": "300"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == status, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    def test_plan_apply_verify_and_the_receipts(self, posts: Path, tmp_path: Path) -> None:
        """What a data protection officer has in hand at the end of the day."""
        planned = json.loads(self.run(posts, "plan", "--json"))
        assert planned["orders"]["dsr-1"]["rows"] == 2
        assert "dsr-1" in self.run(posts, "plan")
        assert "2 rows of dsr-1" in self.run(posts, "verify", status=1)
        receipts = tmp_path / "receipts.json"

        self.run(posts, "apply", "--if-version", planned["version"], "--receipts", str(receipts))

        first = json.loads(receipts.read_text())
        assert [(one["order_id"], one["result"], one["rows_removed"]) for one in first] == [
            ("dsr-1", "DELETED", 2)
        ]
        assert first[0]["version_before"] == planned["version"] != first[0]["version_after"]
        assert members(posts) == ["bob", "cleo"]
        self.run(posts, "verify")
        self.run(posts, "apply", "--receipts", str(receipts))
        again = json.loads(receipts.read_text())
        assert again[0] | {"completed_at": 0} == first[0] | {"completed_at": 0}

    def test_a_data_set_that_changed_since_the_plan_is_left_alone(
        self, posts: Path, tmp_path: Path
    ) -> None:
        """What was approved is not what would be done."""
        receipts = tmp_path / "receipts.json"

        told = self.run(
            posts, "apply", "--if-version", "another", "--receipts", str(receipts), status=2
        )

        assert "purge.dataset_changed" in told
        assert json.loads(receipts.read_text())[0]["result"] == "FAILED"
        assert json.loads(receipts.read_text())[0]["detail"] == "purge.dataset_changed"
        assert len(members(posts)) == 4

    def test_an_exempt_order_keeps_its_rows_and_says_why(self, posts: Path) -> None:
        """A legal hold is an answer too; silence is none."""
        told = json.loads(self.run(posts, "apply", "--exempt", "dsr-1=legal hold 7", "--json"))

        assert [(one["result"], one["detail"]) for one in told["receipts"]] == [
            ("EXEMPT", "legal hold 7")
        ]
        assert len(members(posts)) == 4
        self.run(posts, "verify", "--exempt", "dsr-1=legal hold 7")

    @pytest.mark.parametrize(
        "arguments",
        [
            ("apply", "--exempt", "nobody=why"),
            ("apply", "--exempt", "dsr-1="),
            ("apply", "--order", "nobody"),
            ("apply", "--unknown", "perhaps"),
            ("apply", "--vacuum"),
            ("apply", "--bundle", "file:///nowhere"),
            ("apply", "--member-col", "user"),
            ("plan", "--orders", "nowhere.json"),
            ("verify", "--orders", "/dev/null"),
            ("apply", "--subscriber", "ranker"),
        ],
        ids=" ".join,
    )
    def test_what_cannot_be_done_is_refused_and_nothing_is_removed(
        self, posts: Path, arguments: tuple[str, ...]
    ) -> None:
        """A purge that half understood what it was asked deletes the wrong rows, or none."""
        assert "Fix:" in self.run(posts, *arguments, status=2)
        assert len(members(posts)) == 4

    @pytest.mark.parametrize(
        "fields",
        [
            {"member": "ana", "jurisdictions": ["HK"]},
            {},
            {"member": "a b"},
            {"jurisdictions": "HK"},
            {"member": "ana", "because": "WHIM"},
            {"member": "ana", "recorded_at": "yesterday"},
            {"member": "ana", "order_id": 7},
            {"member": "ana", "rows": 3},
        ],
        ids=str,
    )
    def test_an_order_that_does_not_fit_is_refused(
        self, posts: Path, tmp_path: Path, fields: dict[str, Any]
    ) -> None:
        """A typing error in a file of orders must not become an order for somebody else, or for
        everybody.
        """
        order = {"order_id": "dsr-1", "because": "ERASURE", "recorded_at": "2026-01-01"} | fields
        (tmp_path / "orders.json").write_text(json.dumps(order) + "\n")

        assert "Fix:" in self.run(posts, "apply", status=2)
        assert len(members(posts)) == 4

    def test_an_order_about_a_jurisdiction_needs_somebody_who_knows_who_lives_there(
        self, posts: Path, tmp_path: Path
    ) -> None:
        """By the rows alone most residents would be missed, under a receipt that says deleted."""
        order = {
            "order_id": "p-1",
            "because": "PAUSE",
            "recorded_at": "2026-01-01",
            "jurisdictions": ["HK"],
        }
        (tmp_path / "orders.json").write_text(json.dumps(order))

        assert "purge.no_members" in self.run(posts, "apply", status=2)

    def test_old_versions_of_a_table_are_named_and_vacuumed(
        self, posts: Path, tmp_path: Path
    ) -> None:
        """The officer must not be told that it is gone while a time traveller can read it."""
        table = tmp_path / "table"
        deltalake.write_deltalake(table, pq.read_table(posts / "a.parquet"))

        assert "until they are vacuumed" in self.run(table, "apply")
        assert "older version 0" in self.run(table, "verify", status=1)
        self.run(table, "verify", "--current-only")
        self.run(table, "apply", "--vacuum")
        assert "clean" in self.run(table, "verify")


@pytest.mark.stack
def test_orders_come_from_kafka_and_receipts_settle_them(world: World, tmp_path: Path) -> None:
    """A warehouse without a trainer of its own owes its receipt too, and has nobody but this
    command to give it.
    """
    world.processor(SUBSCRIBERS="warehouse=posts")
    world.open_policy()
    posts = tmp_path / "posts"
    write(posts, member_id=["anna", "bo", None, "cy", "dora"], text=list("abcde"))
    world.produce(
        lives_in("bo"), lives_in("cy", "CA"), lives_in("dora"), opted_out("dora"), erased("anna")
    )
    world.control(pause("ca-2024", "CA", reach=Reach.PRIOR_AND_FUTURE))

    def orders() -> dict[str, bool]:
        found = (read_order(message.value, world.catalog) for message in world.log(PURGE_ORDERS))
        return {order.because.value: order.is_settled for order in found}

    wait_for(lambda: orders() == {"ERASURE": False, "PAUSE": False}, "both orders")
    planned = json.loads(world.ok("purge", "plan", str(posts), "--json"))
    assert sorted(one["rows"] for one in planned["orders"].values()) == [1, 1]

    told = json.loads(world.ok("purge", "apply", str(posts), "--subscriber", "warehouse", "--json"))

    assert {one["result"] for one in told["receipts"]} == {"DELETED"}
    assert members(posts) == ["None", "bo", "dora"]
    given = [read_receipt(message.value, world.catalog) for message in world.log(RECEIPTS)]
    assert {(one.subscriber, one.dataset, one.result.value) for one in given} == {
        ("warehouse", "posts", "DELETED")
    }
    wait_for(lambda: orders() == {"ERASURE": True, "PAUSE": True}, "both settled")
    write(posts, member_id=["anna", "bo", None, "dora"], text=list("abcd"))
    assert world.cli("purge", "verify", str(posts)).returncode == 1

    misspelt = world.cli("purge", "apply", str(posts), "--excluded", "gen_training")
    assert misspelt.returncode == 2
    assert "[purge.purpose_unknown]" in misspelt.stderr
    assert "genai_training" in misspelt.stderr
    assert len(members(posts)) == 4, "nobody is allowed for a purpose that no policy names"

    done = world.cli("purge", "apply", str(posts), "--excluded", "genai_training", "--json")

    assert done.returncode == 2
    assert json.loads(done.stdout)["unknown"] == 1
    assert members(posts) == ["None", "bo"]
