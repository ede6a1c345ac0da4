"""B-01 to B-18 and B-21 to B-23 on the real path: broker, registry, processor, table, trainer.

One world takes all bad messages at once. For each of them: its member is quarantined (or its
partition tainted), its bytes and headers are in quarantine, the good event behind it was applied,
and the answer is *excluded*.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from tests.faults.inputs.attacks import (
    ATTACKS,
    NULL,
    OPT_IN,
    OPT_OUT,
    TAINTED,
    Attack,
    choice_of,
    of_row,
)
from tests.faults.inputs.scene import Scene
from tests.stack import PARTITIONS, SHARED, World, allowed, lives_in, wait_for

from consentry.local.stack import LocalStack
from consentry.wire.catalog import REGISTRY_CALLS_PER_SECOND_MAX
from consentry.wire.frames import frame
from consentry.wire.partitions import partition_of
from consentry.wire.schemas import MEMBER_EVENTS, Schema, schema, topics

pytestmark = pytest.mark.stack

FOREIGN_ORDER = json.dumps(json.loads(schema("ConsentChanged").text)).replace(
    '["OPT_OUT", "OPT_IN", "UNKNOWN"]', '["OPT_IN", "OPT_OUT", "UNKNOWN"]'
)
WITH_A_FLAG = json.dumps(json.loads(schema("ConsentChanged").text)).replace(
    '{"name": "member_id"',
    '{"name": "is_allowed", "type": "boolean", "default": true}, {"name": "member_id"',
)
ARRAY = json.dumps(
    {
        "type": "record",
        "name": "ConsentChanged",
        "namespace": "consentry",
        "fields": [{"name": "nothing", "type": {"type": "array", "items": "null"}}],
    }
)
RECURSIVE = json.dumps(
    {
        "type": "record",
        "name": "ConsentChanged",
        "namespace": "consentry",
        "fields": [{"name": "inner", "type": ["null", "consentry.ConsentChanged"]}],
    }
)
FOREIGN = {
    "B-04": FOREIGN_ORDER,
    "B-15": ARRAY,
    "B-16": RECURSIVE,
    "B-17": WITH_A_FLAG,
    "B-18": FOREIGN_ORDER,
}
PARTS = {"B-17": {"choice": OPT_OUT, "evidence": NULL + b"\x01"}}
PAYLOADS = {
    # 2^62 items of no size, in ten bytes; and a value 100,000 deep, in 100,000 bytes cut to what a
    # message may hold.
    "B-15": b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01\x00",
    "B-16": b"\x02" * 16_000 + b"\x00",
}


def foreign(world: World, row: str) -> Attack:
    """A message under a schema that somebody else registered in the same registry."""
    told = Schema("foreign", FOREIGN[row] + " " * int(row[2:]), None, "")
    schema_id = world.registry.register(f"{world.namespace}.of-another-team-{row}-value", told)
    head = frame(schema_id)
    payload, parts = PAYLOADS.get(row), PARTS.get(row, {"choice": OPT_IN})
    return Attack(
        row=row,
        what="schema of another team",
        value=lambda _catalog, key: (
            choice_of(head, key, **parts) if payload is None else head + payload
        ),
        error_class="schema_id",
    )


@pytest.fixture(scope="module")
def scene(shared: LocalStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """The world in which everything has been sent."""
    SHARED.mend()
    world = World(shared, tmp_path_factory.mktemp("inputs"))
    try:
        scene = Scene(world)
        scene.attack([*ATTACKS, *(foreign(world, row) for row in FOREIGN)])
        yield scene
        scene.close()
    finally:
        world.close()


def assert_row(scene: Scene, row: str) -> None:
    """Every message of a row was refused."""
    attacks = [attack for attack in ATTACKS if attack.row == row]
    attacks += [foreign(scene.world, row)] if row in FOREIGN else []
    assert attacks
    for attack in attacks:
        scene.assert_refused(attack)


def test_b01_an_empty_message_holds_its_member(scene: Scene) -> None:
    """Read as "forget the member", it would put somebody who had objected back to the default."""
    assert_row(scene, "B-01")


def test_b02_what_has_no_frame_holds_its_member(scene: Scene) -> None:
    """A producer without the serialiser sends JSON; its opt-outs are in there all the same."""
    assert_row(scene, "B-02")


def test_b03_unknown_schema_ids_hold_their_members_and_cost_the_registry_little(
    scene: Scene,
) -> None:
    """A flood of invented ids would make the registry slow for everybody, and every opt-out
    late.
    """
    assert_row(scene, "B-03")
    members = [f"invented-{number}" for number in range(300)]
    homes = {member: partition_of(member.encode(), PARTITIONS) for member in members}
    held = [member for member, home in homes.items() if home != TAINTED]
    scene.registry.asked.clear()
    for number, member in enumerate(held):
        scene.send(
            member.encode(), choice_of(frame(500_000 + number), member.encode()), homes[member]
        )
    scene.world.produce(lives_in("behind-the-flood"))
    wait_for(
        lambda: allowed(scene.client, "behind-the-flood"), "the good event behind the invented ids"
    )
    wait_for(lambda: all(scene.reason(member) == "QUARANTINED" for member in held), "all held")
    asked = scene.registry.asked
    assert asked, "it was asked at all"
    # Ten in a second of the clock, so at most twenty in any stretch of that length.
    most = max(sum(first <= moment < first + 1 for moment in asked) for first in asked)
    assert most <= 2 * REGISTRY_CALLS_PER_SECOND_MAX


def test_b04_the_id_of_another_schema_is_refused_whatever_its_bytes_would_say(scene: Scene) -> None:
    """Under a schema with OPT_IN first, a withdrawal of that team is a grant to us."""
    assert_row(scene, "B-04")


def test_b05_a_negative_enum_index_is_refused(scene: Scene) -> None:
    """Python counts from the end: index -2 of (OPT_OUT, OPT_IN, UNKNOWN) is OPT_IN."""
    assert_row(scene, "B-05")


def test_b06_an_index_beyond_its_list_is_refused(scene: Scene) -> None:
    """The decoder raises an error of its own class, which must not end the worker."""
    assert_row(scene, "B-06")


def test_b07_a_negative_union_index_is_refused(scene: Scene) -> None:
    """It reads a version that nobody wrote: an opt-in could claim to have seen the opt-out."""
    assert_row(scene, "B-07")


def test_b08_bytes_behind_the_event_are_refused(scene: Scene) -> None:
    """Two events glued together: the second, perhaps the opt-out, would be dropped in silence."""
    assert_row(scene, "B-08")


def test_b09_numbers_that_are_not_written_as_they_must_be_are_refused(scene: Scene) -> None:
    """One content with many spellings defeats every comparison of bytes.

    No member event has a plain int at all.
    """
    assert_row(scene, "B-09")
    for name in topics()[MEMBER_EVENTS].records:
        assert not [field for field in schema(name).parsed["fields"] if field["type"] == "int"]


def test_b10_a_number_that_is_cut_off_is_refused(scene: Scene) -> None:
    """It ends the decoder by an error of another class than a cut text does."""
    assert_row(scene, "B-10")


def test_b11_a_text_that_claims_more_than_there_is_is_refused(scene: Scene) -> None:
    """Who believes the length asks the system for two gigabytes, and the worker of every other
    member is gone.
    """
    assert_row(scene, "B-11")
    for attack in of_row("B-11"):
        value = attack.value(scene.world.catalog, attack.member.encode()) or b""
        assert decoded_in_a_cell(value, schema("ConsentChanged").text).returncode == 0


def test_b12_text_that_is_none_is_refused(scene: Scene) -> None:
    """A line break or a label's bracket in a purpose writes into logs and metrics what it likes."""
    assert_row(scene, "B-12")
    assert "__name__" not in scene.worker.text()


def test_b13_a_byte_that_is_no_truth_value_is_refused_and_no_event_has_a_float(
    scene: Scene,
) -> None:
    """7 counts as true and NaN as smaller than nothing: no member event has either type."""
    assert_row(scene, "B-13")
    for name in topics()[MEMBER_EVENTS].records:
        assert not {"boolean", "float", "double"} & {
            str(one["type"]) for one in schema(name).parsed["fields"]
        }


def test_b14_a_time_outside_of_the_window_is_refused(scene: Scene) -> None:
    """An opt-out of the year 200000 would never take effect."""
    assert_row(scene, "B-14")


def test_b15_an_array_of_nothing_is_never_decoded(scene: Scene) -> None:
    """Ten bytes claim 2^62 items of no size: whoever reads them under their own schema never comes
    back.
    """
    assert_row(scene, "B-15")
    assert scene.worker.is_running
    cell = decoded_in_a_cell(frame(1) + PAYLOADS["B-15"], ARRAY, seconds=2)
    assert cell.returncode < 0, "with the guard off the process is killed by its limits"


def test_b16_a_value_without_bottom_is_never_decoded(scene: Scene) -> None:
    """The C decoder goes as deep as the bytes say, until the stack is gone, and the process with
    it.
    """
    assert_row(scene, "B-16")
    assert scene.worker.is_running
    cell = decoded_in_a_cell(frame(1) + b"\x02" * 1_000_000 + b"\x00", RECURSIVE)
    assert cell.returncode != 0, "with the guard off the process dies"


DECODE = """
import io, json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
resource.setrlimit(resource.RLIMIT_CPU, ({seconds}, {seconds}))
import fastavro
value = sys.stdin.buffer.read()
try:
    fastavro.schemaless_reader(io.BytesIO(value[5:]), fastavro.parse_schema(json.loads(sys.argv[1])), None)
except Exception as error:
    print(type(error).__name__)
"""


def decoded_in_a_cell(
    value: bytes, text: str, *, seconds: int = 10
) -> subprocess.CompletedProcess[bytes]:
    """What becomes of a process with 1 GiB and some seconds that decodes the value under that
    schema.
    """
    return subprocess.run(
        [sys.executable, "-c", DECODE.format(seconds=seconds), text],
        input=value,
        capture_output=True,
        timeout=60,
        check=False,
        env={name: value for name, value in os.environ.items() if name in ("PATH", "HOME")},
    )


def test_b17_a_version_with_a_permissive_default_is_not_pinned_and_its_events_are_refused(
    scene: Scene,
) -> None:
    """Readability is all that a registry checks: a new flag that says yes for all who never said it
    is readable.

    A default that was changed alone makes no other bytes, and what is read is read with our own
    schema.
    """
    assert_row(scene, "B-17")


def test_b18_what_a_producer_registers_by_itself_opens_nothing(scene: Scene) -> None:
    """`auto.register.schemas` is on in every client by default."""
    assert_row(scene, "B-18")


def test_b21_what_is_larger_than_an_event_can_be_is_refused_and_kept(scene: Scene) -> None:
    """A worker that cannot put the monster into quarantine would stand before it for ever, and
    everybody behind it.
    """
    assert_row(scene, "B-21")


def test_b21_header_names_that_are_no_text_end_no_worker(scene: Scene) -> None:
    """The client hands such names out as holes: touching one ends the process, again after each
    restart.
    """
    member, behind = "b21-header-names", "b21-behind"
    scene.world.produce(lives_in(member))
    wait_for(lambda: allowed(scene.client, member), "allowed before")
    home = partition_of(member.encode(), 8)
    value = choice_of(scene.world.catalog.frame_of("ConsentChanged"), member.encode())
    sent = subprocess.run(
        [
            sys.executable,
            "-c",
            WITH_BAD_NAME,
            scene.world.stack.addresses.kafka,
            scene.world.topic(MEMBER_EVENTS),
        ],
        input=json.dumps([home, member, value.hex()]),
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
        env={**os.environ, "AIOKAFKA_NO_EXTENSIONS": "1"},
    )
    assert sent.returncode == 0, sent.stderr
    scene.world.produce(lives_in(behind))
    wait_for(
        lambda: scene.reason(member) == "QUARANTINED" and allowed(scene.client, behind),
        "held, and the next event",
    )
    [kept] = [one for one in scene.quarantine(again=True) if one.fields["key"] == member.encode()]
    assert (kept.fields["value"], kept.fields["error_class"]) == (value, "headers")
    place = [scene.world.topic(MEMBER_EVENTS), str(home), str(kept.fields["offset"])]
    plainly = subprocess.run(
        [sys.executable, "-c", READ_PLAINLY, scene.world.stack.addresses.kafka, *place],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert plainly.returncode != 0, "with the guard off, whoever looks at the names is ended"


READ_PLAINLY = """
import sys
from confluent_kafka import Consumer, TopicPartition

consumer = Consumer({"bootstrap.servers": sys.argv[1], "group.id": "plain"})
consumer.assign([TopicPartition(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))])
message = consumer.poll(20)
assert message is not None
try:
    message.headers()
except Exception:
    pass
for name, value in message.headers():
    print(name, value)
"""


WITH_BAD_NAME = """
import asyncio, json, sys
from aiokafka import AIOKafkaProducer

class Name(str):
    def encode(self, *_arguments):
        return b"\\xff\\xfe"

async def send():
    partition, member, value = json.load(sys.stdin)
    producer = AIOKafkaProducer(bootstrap_servers=sys.argv[1])
    await producer.start()
    await producer.send_and_wait(
        sys.argv[2], bytes.fromhex(value), member.encode(), partition=partition, headers=[(Name("zz"), b"1")]
    )
    await producer.stop()

asyncio.run(send())
"""


def test_b22_a_key_that_is_not_the_member_is_refused_and_a_missing_one_taints(scene: Scene) -> None:
    """The order of a member's events is the order of their key; without one it could be anybody's
    opt-out.
    """
    assert_row(scene, "B-22")


def test_b23_a_right_event_in_the_wrong_place_is_refused(scene: Scene) -> None:
    """A client's bug sent events to other topics in silence; on another partition they have no
    order.
    """
    assert_row(scene, "B-23")
    attack = next(one for one in of_row("B-23") if one.partition_offset)
    assert attack.partition != partition_of(attack.member.encode(), 8)


def test_what_was_refused_is_counted_and_nobody_is_named(scene: Scene) -> None:
    """The counters are what wakes somebody; the log is read by many."""
    worker, attacks = (
        scene.worker,
        [attack for attack in ATTACKS if attack.error_class != "schema_id"],
    )
    for error_class in {attack.error_class for attack in attacks} - {"headers"}:
        sent = sum(attack.error_class == error_class for attack in attacks)
        assert worker.metric("consentry_quarantined_total", error_class=error_class) == sent, (
            error_class
        )
    assert not [attack.member for attack in ATTACKS if attack.member in worker.text()]
