"""From a consent event to a trainer that leaves the member out, by the commands that people
type.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.stack import (
    PARTITIONS,
    PURPOSE,
    Running,
    World,
    allowed,
    lift,
    lives_in,
    member_of,
    opted_in,
    opted_out,
    pause,
    reason,
    wait_for,
)
from tests.table import store_partition

from consentry.domain.controls import OptIns, Reach
from consentry.domain.values import Micros
from consentry.trainer.purge import dataset_files
from consentry.wire.purge_orders import read_order
from consentry.wire.records import version_of
from consentry.wire.schemas import PURGE_ORDERS

pytestmark = pytest.mark.stack

POLICY = """
version: demo-2024
effective: 2024-09-18
terms:
  - jurisdictions: ["*"]
    purpose: genai_training
    regime: DEFAULT_ON
    purge: {within: P10D}
"""


def write_dataset(directory: Path, rows: dict[str, list[str]]) -> None:
    """A Parquet data set of two files, each with every column."""
    directory.mkdir()
    names = list(rows)
    half = len(rows[names[0]]) // 2
    for place, part in enumerate((slice(None, half), slice(half, None))):
        pq.write_table(
            pa.table({name: rows[name][part] for name in names}),
            directory / f"part-{place}.parquet",
        )


def members_in(directory: Path) -> list[str]:
    """Whose rows a data set still holds."""
    found: list[str] = []
    for path in dataset_files(directory):
        with path.open(
            "rb"
        ) as file:  # opened once: a purge may put another file in its place at any moment
            found += pq.read_table(file)["member_id"].to_pylist()
    return sorted(set(found))


def start_trainer(world: World, rows: dict[str, list[str]]) -> tuple[Running, Path, Path]:
    """The reference trainer over a new data set; itself, the data set and the manifest it
    writes.
    """
    dataset, manifest = world.directory / "posts", world.directory / "manifest.parquet"
    write_dataset(dataset, rows)
    trainer = world.start(
        "trainer",
        *(
            "--dataset",
            str(dataset),
            "--name",
            "ranker",
            "--every",
            "0",
            "--manifest",
            str(manifest),
        ),
    )
    return trainer, dataset, manifest


def epoch(trainer: Running, manifest: Path) -> dict[str, set[str]]:
    """Have the trainer read its data set once; the reasons it noted per member."""
    before = trainer.told("/readyz")["epochs"]
    trainer.process.send_signal(signal.SIGUSR1)
    wait_for(lambda: trainer.told("/readyz")["epochs"] > before, "another epoch")
    found: dict[str, set[str]] = {}
    table = pq.read_table(manifest)
    for member, why in zip(
        table["member_id"].to_pylist(), table["reason"].to_pylist(), strict=True
    ):
        found.setdefault(member, set()).add(why)
    return found


def test_what_a_member_and_a_regulator_say_by_the_command_line_is_what_the_trainer_heeds(
    world: World,
) -> None:
    """A member who opted out, or a whole country that was paused, would be trained on."""
    world.processor()
    trainer, _, manifest = start_trainer(world, {"member_id": ["anna", "bo", "nobody", "anna"]})
    (world.directory / "policy.yaml").write_text(POLICY)
    assert "PolicyPublished" in world.ok("policy", "publish", "policy.yaml")
    told, token = world.ok("emit", "relocate", "anna", "HK", "--age-band", "ADULT").split("token: ")
    assert told.startswith("accepted: ")
    world.produce(lives_in("bo", "US"))
    trainer.wait_ready()
    client = world.client()
    client.wait_for(token.strip(), 20)
    wait_for(lambda: allowed(client, "anna") and allowed(client, "bo"), "both allowed")
    assert epoch(trainer, manifest) == {
        "anna": {"DEFAULT_ON"},
        "bo": {"DEFAULT_ON"},
        "nobody": {"JURISDICTION_UNKNOWN"},
    }

    no_secret = {"TOKEN_KEYS_FILE": "/nonexistent/token.keys"}
    assert "token: " not in world.ok("emit", "opt-out", "bo", environment=no_secret), (
        "who cannot sign can still emit"
    )
    wait_for(lambda: reason(client, "bo") == "OPTED_OUT", "bo out")
    world.ok("emit", "opt-in", "bo")
    world.ok("emit", "opt-in", "bo", "--observed", "1")
    wait_for(lambda: version_of(client.snapshot.records[b"bo"]) == 4, "all four events of bo")
    assert reason(client, "bo") == "OPTED_OUT", (
        "an opt-in by someone who had not seen the opt-out cancels nothing"
    )
    world.ok("emit", "opt-in", "bo", "--observed", "4")
    wait_for(lambda: reason(client, "bo") == "OPTED_IN", "an informed opt-in")

    impose = ("pause", "impose", "hk-2024", "--jurisdiction", "HK", "--authority", "PCPD")
    assert "PauseImposed" in world.ok(*impose)
    wait_for(lambda: reason(client, "anna") == "PAUSED", "the pause")
    assert epoch(trainer, manifest)["anna"] == {"PAUSED"}
    assert "in force" in world.ok("pause", "list")
    assert "PauseLifted" in world.ok("pause", "lift", "hk-2024", "--opt-ins", "KEEP")
    wait_for(lambda: allowed(client, "anna"), "the lift")
    assert "lifted" in world.ok("pause", "list")

    assert "version 5" in world.ok("table", "get", "bo")
    told = json.loads(world.ok("table", "get", "bo", "--json"))
    assert [fact["kind"] for fact in told["facts"]][:2] == ["RELOCATED_ADULT", "OPTED_OUT"]
    assert world.cli("table", "get", "nobody").returncode == 1
    counted = json.loads(world.ok("table", "stats", "--json"))
    assert counted["members"] == 2
    assert len(counted["partitions"]) == PARTITIONS
    assert "equal" in world.ok("table", "verify", "--follower", trainer.address)
    world.assert_all_agree(client)


@pytest.mark.parametrize(
    ("opt_ins", "afterwards"), [(OptIns.VOID, "OPT_IN_REQUIRED"), (OptIns.KEEP, "OPTED_IN")]
)
def test_an_opt_out_survives_every_lift_and_an_opt_in_only_one_that_keeps_it(
    world: World, opt_ins: OptIns, afterwards: str
) -> None:
    """After a lift people had to opt out again, or were trained on under an opt-in to terms that
    are gone.
    """
    from consentry.domain.controls import Regime

    world.processor()
    world.open_policy(Regime.OPT_IN)
    world.produce(lives_in("in", "GB"), opted_in("in"), lives_in("out", "GB"), opted_out("out"))
    client = world.client()
    client.wait_until_ready(30)
    wait_for(lambda: reason(client, "in") == "OPTED_IN", "the opt-in")
    world.control(pause("uk-2024", "GB"))
    wait_for(lambda: {reason(client, "in"), reason(client, "out")} == {"PAUSED"}, "the pause")
    world.control(lift("uk-2024", opt_ins))
    wait_for(lambda: reason(client, "in") == afterwards, "the lift")
    assert reason(client, "out") == "OPTED_OUT"
    world.produce(opted_in("in"))
    wait_for(lambda: reason(client, "in") == "OPTED_IN", "an opt-in after the lift")


def test_an_erasure_is_purged_from_the_data_set_and_the_receipt_settles_the_order(
    world: World,
) -> None:
    """Erased data would stay in training sets, and nobody could show a regulator who still owes
    what.
    """
    processor = world.processor(SUBSCRIBERS="ranker=posts")
    trainer, dataset, _ = start_trainer(
        world, {"member_id": ["anna", "bo", "anna", "cy"], "text": list("abcd")}
    )
    world.produce(lives_in("anna"), lives_in("bo"))
    trainer.wait_ready()
    world.ok("emit", "erase", "anna")
    wait_for(lambda: members_in(dataset) == ["bo", "cy"], "anna's rows gone")
    wait_for(lambda: _orders(world) == {("ERASURE", True)}, "the order settled")
    wait_for(
        lambda: (
            processor.metric("consentry_receipts_total", subscriber="ranker", result="DELETED") == 1
        ),
        "receipt",
    )
    assert processor.metric("consentry_purge_orders_open", subscriber="ranker") == 0
    world.produce(lives_in("anna"), opted_in("anna"))
    told = json.loads(world.ok("explain", "anna", "--json"))
    assert (told["allowed"], told["reason"]) == (False, "ERASED")


def test_a_pause_that_reaches_back_purges_the_whole_scope_by_member_and_by_row(
    world: World,
) -> None:
    """Canadians were promised to be removed from training sets: one who is known only by the row
    would stay.
    """
    world.processor(SUBSCRIBERS="ranker=posts")
    world.open_policy()
    rows = {
        "member_id": ["moved", "stays", "unknown", "elsewhere"],
        "jurisdiction": ["US", "US", "CA", "US"],
    }
    world.produce(lives_in("moved", "CA"), lives_in("stays", "US"), lives_in("elsewhere", "GB"))
    trainer, dataset, _ = start_trainer(world, rows)
    trainer.wait_ready()
    world.control(pause("ca-2024", "CA", reach=Reach.PRIOR_AND_FUTURE))
    wait_for(lambda: members_in(dataset) == ["elsewhere", "stays"], "the scope purged")
    wait_for(lambda: _orders(world) == {("PAUSE", True)}, "the order settled")


def _orders(world: World) -> set[tuple[str, bool]]:
    """Reason and settledness of each order, by its last message."""
    last = {
        message.key: read_order(message.value, world.catalog) for message in world.log(PURGE_ORDERS)
    }
    return {(order.because.value, order.is_settled) for order in last.values()}


def test_what_was_known_three_days_before_the_hong_kong_pause_was_reported_has_an_answer(
    world: World,
) -> None:
    """Nobody could tell a regulator whether training between effect and report was in good
    faith.
    """

    def day(number: int) -> Micros:
        return Micros((19_997 + number) * 86_400_000_000)  # 1 October 2024 is day 19,997

    world.processor().wait_ready()
    world.open_policy()
    world.produce(lives_in("anna", "HK", since=day(-30)))
    world.control(pause("hk-2024", "HK", effective=day(10), recorded=day(13)))

    def told(at: str, known_at: str) -> tuple[bool, str]:
        found = json.loads(
            world.ok("explain", "anna", "--at", at, "--known-at", known_at, "--json")
        )
        return found["allowed"], found["reason"]

    def is_there() -> bool:
        return world.cli("table", "get", "anna").returncode == 0

    wait_for(is_there, "anna in the table")
    assert told("2024-10-12", "2024-10-12") == (True, "DEFAULT_ON")
    assert told("2024-10-12", "2024-10-15") == (False, "PAUSED")
    assert told("2024-10-10", "2024-10-15") == (True, "DEFAULT_ON")
    said = world.ok("explain", "anna")
    assert "PAUSED" in said
    assert "11 Oct 2024" in said
    assert "recorded 14 Oct 2024" in said


def test_a_table_that_is_rebuilt_on_demand_holds_what_it_held(world: World) -> None:
    """An operator who mends a damaged table would lose opt-outs by it."""
    processor = world.processor().wait_ready()
    world.open_policy()
    world.produce(*(lives_in(f"m{number}") for number in range(40)))
    world.produce(*(opted_out(f"m{number}") for number in range(0, 40, 3)))
    client = world.client()
    client.wait_until_ready(30)
    before, held = world.generations(), world.assert_all_agree(client)
    assert "whole" in world.ok("table", "rebuild")
    assert world.assert_all_agree(client) == held
    assert not set(world.generations().values()) & set(before.values())
    wait_for(
        lambda: processor.metric("consentry_table_generation_changes_total") == PARTITIONS,
        "changes counted",
    )
    wait_for(lambda: client.is_fresh, "fresh again")
    assert reason(client, "m0") == "OPTED_OUT"
    assert allowed(client, "m1")


def test_rebuilding_without_a_processor_is_refused_and_empties_nothing(world: World) -> None:
    """The table would stay empty, and every answer be refused, until someone noticed."""
    processor = world.processor().wait_ready()
    world.produce(lives_in("anna"))
    held = world.assert_all_agree()
    assert processor.stop() == 0
    refused = world.cli("table", "rebuild")
    assert refused.returncode == 2
    assert "table.no_processor" in refused.stderr
    assert world.table_records() == held


def test_a_difference_between_table_and_log_is_found_and_told(world: World) -> None:
    """A silent difference is a member whom the table allows and the log excludes."""
    world.processor().wait_ready()
    world.produce(lives_in("anna"), lives_in(member_of(3)))
    world.assert_all_agree()
    with world.table() as table:
        found = table.meta(3)
        assert found.epoch is not None
        raw = dict(table.scan(3))
        key, record = next(iter(raw.items()))
        store_partition(
            table,
            3,
            {key: record[:-1] + bytes([record[-1] ^ 1])},
            epoch=found.epoch,
            expected_offset=found.next_offset,
            next_offset=found.next_offset,
        )
    different = world.cli("table", "verify", "--json")
    assert different.returncode == 1
    assert json.loads(different.stdout)["differing_partitions"]["log"] == [3]
    unclear = world.cli("table", "verify", "--follower", "127.0.0.1:1")
    assert unclear.returncode == 2
    assert "Traceback" not in unclear.stderr


def test_no_member_is_answered_for_while_the_table_is_not_proven_fresh(world: World) -> None:
    """Somebody would be told *allowed* from a table that nobody keeps up to date."""
    processor = world.processor().wait_ready()
    world.open_policy()
    world.produce(lives_in("anna"))
    wait_for(
        lambda: json.loads(world.ok("explain", "anna", "--json"))["allowed"], "allowed", every=0.2
    )
    processor.kill()

    def is_refused() -> bool:
        done = world.cli("explain", "anna", "--purpose", PURPOSE)
        return done.returncode == 2 and "table.stale" in done.stderr and not done.stdout

    wait_for(is_refused, "a refusal", seconds=15)
