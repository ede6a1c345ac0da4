"""A small world for bundles: a log with somebody in every condition, and how a bundle of it is
published.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

from tests.strategies import (
    chose,
    day,
    erased,
    lift,
    moved,
    new_catalog,
    pause,
    policy,
    random_event,
    terms,
)

from consentry.bundles import BundleState, BundleStore, Manifest, SigningKey, StoredControl
from consentry.bundles.writer import FILE_ROWS, publish, write_bundle
from consentry.domain.events import MemberEvent
from consentry.domain.records import Record, fold
from consentry.domain.values import Choice, MemberId, Micros
from consentry.wire.catalog import Catalog
from consentry.wire.controls import write_control
from consentry.wire.frontiers import Frontier
from consentry.wire.partitions import partition_of
from consentry.wire.records import write_record
from consentry.wire.schemas import RECORDS

PARTITIONS = 4
NOW = day(100)
MEMBERS = (
    "1",
    "17",
    "4294967296",
    "9223372036854775807",
    "9223372036854775808",
    "007",
    "m:1",
    "m:2",
)
LOGS = {"records": "a1" * 8, "controls": "b2" * 8}


def record_bytes(catalog: Catalog, member: str, *events: MemberEvent) -> bytes:
    """The record after these events, as it stands in the log."""
    record: Record | None = None
    for event in events:
        record = fold(record, event)
    assert record is not None
    assert record.member == MemberId(member)
    return write_record(record, catalog.frame_of("ConsentRecord"))


class Log:
    """Messages as a follower would hand them on, offset by offset, and the state that they make."""

    def __init__(self) -> None:
        self.catalog = new_catalog()
        self.state = BundleState(PARTITIONS, self.catalog, logs=LOGS)
        self._controls = 0

    def member(self, member: str, *events: MemberEvent) -> None:
        """The member's record after all of these."""
        self.raw(member, record_bytes(self.catalog, member, *events))

    def raw(self, member: str, value: bytes, *, partition: int | None = None) -> None:
        """A message of records."""
        home = partition_of(member.encode(), PARTITIONS) if partition is None else partition
        self.state.apply_records(home, [member.encode()], [value])
        self.state.move(RECORDS, home, self.state.records_offset(home) + 1)

    def control(self, *controls: object, value: bytes | None = None) -> None:
        """Messages of controls."""
        for control in controls or (None,):
            content = value if control is None else write_control(control, self.catalog)  # type: ignore[arg-type]
            self.state.apply_control(StoredControl(self._controls, NOW, content))
            self._controls += 1

    def frontiers(self, at: Micros, *, tainted: frozenset[int] = frozenset()) -> None:
        """A frontier of each partition, up to where it is."""
        for partition in range(PARTITIONS):
            frontier = Frontier(
                partition=partition,
                generation="g1",
                frontier_at=at,
                next_offset=7,
                records_offset=self.state.records_offset(partition),
                controls_offset=self._controls,
                tainted=partition in tainted,
                log="c3" * 8,
            )
            self.state.freshness.apply(frontier)
        self.state.settle_frontiers()


class History:
    """Any messages, drawn one step at a time."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.log = Log()
        self.log.control(policy(900, terms("*"), terms("*", purpose="ads"), on=0))
        self._events: dict[str, list[MemberEvent]] = {}
        self._number = 1000

    def step(self) -> None:
        """Some messages: mostly records, older ones among them, and what cannot be believed."""
        for _ in range(self.random.randrange(1, 8)):
            self._number += 1
            drawn, member = self.random.random(), self.random.choice(MEMBERS)
            if drawn < 0.7:
                self._record(member)
            elif drawn < 0.8 and self._events.get(member):
                kept = self._events[member]
                self.log.member(member, *kept[: self.random.randrange(1, len(kept) + 1)])
            elif drawn < 0.85:
                self.log.raw(member, b"no record")
            elif drawn < 0.88 and self.log.state.get(member.encode()):
                wrong = (partition_of(member.encode(), PARTITIONS) + 1) % PARTITIONS
                self.log.raw(member, self.log.state.get(member.encode()) or b"", partition=wrong)
            elif drawn < 0.94:
                self.log.control(pause(self._number, "HK", on=3), lift(self._number + 10**6, on=4))
            else:
                self.log.control(value=self.random.choice([None, b"", b"unreadable"]))
        if self.random.random() < 0.7:
            self.log.frontiers(NOW, tainted=frozenset({3} if self.random.random() < 0.2 else ()))

    def _record(self, member: str) -> None:
        event = replace(random_event(self.random, self._number), member=MemberId(member))
        self._events.setdefault(member, []).append(event)
        self.log.member(member, *self._events[member])


def populated() -> Log:
    """Members in every condition: none of them is anybody."""
    log = Log()
    log.control(policy(900, terms("*"), terms("*", purpose="ads"), on=0))
    log.member(
        "m:in", chose(Choice.OPT_IN, 1, on=1, member="m:in"), moved("US", 2, on=1, member="m:in")
    )
    log.member("m:out", chose(Choice.OPT_OUT, 3, on=1, member="m:out"))
    log.member("m:erased", erased(4, on=1, member="m:erased"))
    log.member("m:quiet", moved("HK", 5, on=2, member="m:quiet"))
    log.member("1001", chose(Choice.OPT_OUT, 6, on=1, member="1001"))
    log.member(
        "1002", chose(Choice.OPT_IN, 7, on=1, member="1002"), moved("DE", 8, on=1, member="1002")
    )
    log.member("007", chose(Choice.OPT_OUT, 9, on=1, member="007"))
    log.raw("m:damaged", b"\x00 not a record at all, and no checksum")
    log.frontiers(NOW)
    return log


def published(
    store: BundleStore,
    state: BundleState,
    key: SigningKey,
    *,
    sequence: int = 1,
    parent: Manifest | None = None,
    created_at: Micros = NOW,
    namespace: str = "consentry",
    file_rows: int = FILE_ROWS,
) -> Manifest:
    """Write a bundle and make it the newest."""
    manifest = write_bundle(
        store,
        state,
        key=key,
        namespace=namespace,
        sequence=sequence,
        created_at=created_at,
        parent=parent,
        file_rows=file_rows,
    )
    publish(store, manifest, key=key)
    return manifest
