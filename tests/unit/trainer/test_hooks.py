"""Hooks: told of every narrowing, on threads of their own, and what they cannot be told in full
they are told of.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random
from time import monotonic, sleep

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.sizes import PATIENCE
from tests.strategies import (
    MEMBER,
    PURPOSE,
    WORLD,
    chose,
    day,
    erased,
    folded,
    histories,
    lift,
    moved,
    pause,
    policy,
    random_event,
    terms,
)

from consentry.domain.controls import Control, OptIns, Reach, Regime
from consentry.domain.decisions import Row
from consentry.domain.errors import InvalidInput, Refused
from consentry.domain.events import MemberEvent
from consentry.domain.orders import PurgeOrder, PurgeReason
from consentry.domain.values import AgeBand, Choice, MemberId, Micros, Reason
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.trainer.hooks import Exclusion, ExclusionCause, Hooks
from consentry.trainer.hooks.changes import NarrowingDetector, StoredState
from consentry.trainer.hooks.listeners import MEMBERS_MAX
from consentry.wire.frames import frame
from consentry.wire.frontiers import Frontier
from consentry.wire.partitions import partition_of
from consentry.wire.records import write_record

PARTITIONS = 4


class Trainer:
    """What follows, reduced to what the hooks see of it."""

    def __init__(self, snapshot: Snapshot, **options: float) -> None:
        self.snapshot = snapshot
        self.orders: list[PurgeOrder] = []
        self.hooks = Hooks(snapshot, lambda: list(self.orders), clock=lambda: day(30), **options)  # type: ignore[arg-type]

    def records(self, *events: MemberEvent, of: str = MEMBER) -> None:
        """Apply a member's record after these events."""
        self.many({of: events})

    def many(self, members: dict[str, tuple[MemberEvent, ...]]) -> None:
        """Apply the records of several members, as one batch for each partition."""
        for partition in range(PARTITIONS):
            keys, values = [], []
            for member, events in members.items():
                record = folded(*events)
                if record is not None and partition_of(member.encode(), PARTITIONS) == partition:
                    keys.append(member.encode())
                    values.append(write_record(replace(record, member=MemberId(member)), frame(1)))
            earlier = self.hooks.states_before(keys)
            self.snapshot.apply_records(partition, keys, values)
            self.hooks.note_records(earlier, keys, values)

    def control(self, control: Control) -> None:
        """Apply a control."""
        self.snapshot.apply_control(control)
        self.hooks.note_controls()

    def frontier(self, partition: int, *, tainted: bool) -> None:
        """Apply a frontier."""
        self.snapshot.apply_frontier(Frontier(partition, "life", day(29), 0, 0, 0, tainted))
        self.hooks.note_frontiers()


@pytest.fixture
def trainer(snapshot: Snapshot) -> Iterator[Trainer]:
    """One that follows the small world, with nobody known."""
    trainer = Trainer(snapshot)
    yield trainer
    trainer.hooks.stop()


def wait_for(look: Callable[[], object], seconds: float = 10.0) -> None:
    """Return once it is so."""
    until = monotonic() + PATIENCE * seconds
    while not look():
        assert monotonic() < until, "not within its time"
        sleep(0.005)


US = moved("US", 1, on=1)
OUT = chose(Choice.OPT_OUT, 2, on=2)


def order(name: str) -> PurgeOrder:
    """An open order."""
    return PurgeOrder(
        order_id=name,
        because=PurgeReason.ERASURE,
        recorded_at=day(1),
        due_at=day(40),
        member=MEMBER,
    )


class TestExclusions:
    def test_an_opt_out_is_told_with_its_member_and_reason(self, trainer: Trainer) -> None:
        """A cache of allowed members that is not told goes on serving who opted out."""
        found: list[Exclusion] = []
        trainer.hooks.on_exclusion(purpose=PURPOSE)(found.append)
        trainer.records(US)
        trainer.hooks.begin()

        trainer.records(US, OUT)

        wait_for(lambda: found)
        assert found == [
            Exclusion(
                purpose=PURPOSE,
                cause=ExclusionCause.RECORD,
                at=day(30),
                reason=Reason.OPTED_OUT,
                members=(MEMBER,),
            )
        ]

    def test_what_was_so_before_it_was_ready_and_what_widens_is_not_told(
        self, trainer: Trainer
    ) -> None:
        """Millions of old opt-outs at every start would drown the one that is new."""
        found: list[Exclusion] = []
        trainer.hooks.on_exclusion(purpose=PURPOSE)(found.append)
        trainer.records(US, OUT)
        trainer.control(pause(5, "DE", on=3))
        trainer.hooks.begin()

        trainer.records(US, OUT, chose(Choice.OPT_IN, 3, on=3, observed=2))
        trainer.records(moved("US", 7, on=1, member="new"), of="new")
        trainer.records(US, OUT, chose(Choice.OPT_IN, 3, on=3, observed=2), erased(4, on=4))

        wait_for(lambda: found)
        assert [(one.reason, one.members) for one in found] == [(Reason.ERASED, (MEMBER,))]

    def test_an_opt_out_for_another_purpose_is_not_told(self, trainer: Trainer) -> None:
        """Who is told of everything stops listening."""
        found: list[Exclusion] = []
        trainer.hooks.on_exclusion(purpose=PURPOSE)(found.append)
        trainer.records(US)
        trainer.hooks.begin()

        trainer.records(US, chose(Choice.OPT_OUT, 2, on=2, purpose="ads"))
        trainer.records(moved("US", 7, on=1), chose(Choice.OPT_OUT, 8, on=2), of="other")

        wait_for(lambda: found)
        assert [one.members for one in found] == [("other",)]

    def test_an_opt_out_announced_for_later_is_told_at_once_with_its_time(
        self, trainer: Trainer
    ) -> None:
        """When its day comes no message does."""
        found: list[Exclusion] = []
        trainer.hooks.on_exclusion(purpose=PURPOSE)(found.append)
        trainer.records(US)
        trainer.hooks.begin()

        trainer.records(US, chose(Choice.OPT_OUT, 2, on=2, effective_at=day(50)))

        wait_for(lambda: found)
        assert (found[0].reason, found[0].at) == (Reason.OPTED_OUT, day(50))

    def test_a_pause_is_told_as_its_scope_and_names_nobody(self, trainer: Trainer) -> None:
        """A pause of a country with a million members must not become a million calls."""
        found: list[Exclusion] = []
        trainer.hooks.on_exclusion(purpose=PURPOSE)(found.append)
        trainer.many(
            {
                f"m{number}": (moved("HK", number + 1, on=1, member=f"m{number}"),)
                for number in range(50)
            }
        )
        trainer.hooks.begin()

        hong_kong = pause(99, "HK", on=31, reach=Reach.PRIOR_AND_FUTURE)
        trainer.control(hong_kong)
        trainer.control(hong_kong)

        wait_for(lambda: found)
        assert found == [
            Exclusion(purpose=PURPOSE, cause=ExclusionCause.CONTROL, at=day(31), control=hong_kong)
        ]

    @pytest.mark.parametrize(
        ("control", "is_told"),
        [
            (pause(11, "HK", on=3, purposes=("ads",)), False),
            (pause(11, "HK", on=3, purposes=None), True),
            (lift(12, on=3, opt_ins=OptIns.KEEP), False),
            (lift(12, on=3, opt_ins=OptIns.VOID), True),
            (policy(13, terms("*", regime=Regime.OPT_IN), on=3), True),
        ],
    )
    def test_a_control_is_told_if_it_may_exclude_somebody(
        self, trainer: Trainer, control: Control, is_told: bool
    ) -> None:
        """A lift that voids opt-ins, or a stricter policy, excludes as surely as a pause."""
        found: list[Exclusion] = []
        trainer.hooks.on_exclusion(purpose=PURPOSE)(found.append)
        trainer.hooks.begin()

        trainer.control(control)
        trainer.control(pause(14, "US", on=4, name="last"))

        wait_for(lambda: found and getattr(found[-1].control, "pause", "") == "last")
        assert (len(found) == 2) == is_told

    def test_an_unreadable_event_of_nobody_known_is_told_for_its_partition_once(
        self, trainer: Trainer
    ) -> None:
        """All members of that partition are held from then on."""
        found: list[Exclusion] = []
        trainer.hooks.on_exclusion(purpose=PURPOSE)(found.append)
        trainer.hooks.begin()

        foreign = (partition_of(MEMBER.encode(), PARTITIONS) + 1) % PARTITIONS
        trainer.frontier(foreign, tainted=True)
        trainer.frontier(foreign, tainted=True)
        trainer.records(US, OUT)

        wait_for(lambda: len(found) > 1)
        told = [(one.cause, one.partitions) for one in found]
        assert told == [(ExclusionCause.PARTITION, (foreign,)), (ExclusionCause.RECORD, ())]

    def test_a_damaged_record_is_told_as_held(self, trainer: Trainer) -> None:
        """The damaged one may have been the opt-out."""
        found: list[Exclusion] = []
        trainer.hooks.on_exclusion(purpose=PURPOSE)(found.append)
        trainer.records(US)
        trainer.hooks.begin()
        key, home = MEMBER.encode(), partition_of(MEMBER.encode(), PARTITIONS)
        record = folded(US, OUT)
        assert record is not None
        raw = write_record(record, frame(1))

        damaged = raw[:20] + bytes((raw[20] ^ 1,)) + raw[21:]

        earlier = trainer.hooks.states_before([key])
        trainer.snapshot.apply_records(home, [key], [damaged])
        trainer.hooks.note_records(earlier, [key], [damaged])

        wait_for(lambda: found)
        assert (found[0].reason, found[0].members) == (Reason.QUARANTINED, (MEMBER,))

    def test_a_long_list_of_members_comes_in_parts(self, trainer: Trainer) -> None:
        """One call with all of them could be more than its reader can hold."""
        found: list[Exclusion] = []
        trainer.hooks.on_exclusion(purpose=PURPOSE)(found.append)
        trainer.hooks.begin()
        names = [f"m{number}" for number in range(MEMBERS_MAX + 1)]

        trainer.many({name: (chose(Choice.OPT_OUT, 2, on=2, member=name),) for name in names})

        wait_for(lambda: sum(len(one.members) for one in found) == len(names))
        assert max(len(one.members) for one in found) <= MEMBERS_MAX
        assert {member for one in found for member in one.members} == set(names)

    def test_a_purpose_that_no_policy_can_name_is_refused(self, trainer: Trainer) -> None:
        """A hook for a misspelt purpose would stay silent for ever."""
        with pytest.raises(InvalidInput):
            trainer.hooks.on_exclusion(purpose="GenAI training")


class TestThreads:
    def test_a_hook_that_sleeps_or_raises_delays_neither_the_follower_nor_other_hooks(
        self, trainer: Trainer
    ) -> None:
        """Freshness would be lost, and all training with it, because somebody's cache is slow."""
        asleep, wake = threading.Event(), threading.Event()
        found: list[Exclusion] = []

        @trainer.hooks.on_exclusion(purpose=PURPOSE)
        def sleeps(_exclusion: Exclusion) -> None:
            asleep.set()
            wake.wait(30)

        @trainer.hooks.on_exclusion(purpose=PURPOSE)
        def raises(_exclusion: Exclusion) -> None:
            raise RuntimeError("of somebody else")

        trainer.hooks.on_exclusion(purpose=PURPOSE)(found.append)
        trainer.hooks.begin()
        trainer.records(chose(Choice.OPT_OUT, 2, on=2, member="a"), of="a")
        assert asleep.wait(10)

        # On the thread that follows: this would not return while a hook sleeps on it.
        trainer.records(chose(Choice.OPT_OUT, 2, on=2, member="b"), of="b")

        wait_for(lambda: {member for one in found for member in one.members} == {"a", "b"})
        assert not wake.is_set()
        wake.set()

    def test_a_hook_that_raised_is_told_of_the_next_exclusion(self, trainer: Trainer) -> None:
        """One bad answer of a cache must not end all news."""
        found: list[Exclusion] = []

        @trainer.hooks.on_exclusion(purpose=PURPOSE)
        def raises_first(exclusion: Exclusion) -> None:
            found.append(exclusion)
            if len(found) == 1:
                raise RuntimeError("of somebody else")

        trainer.hooks.begin()
        trainer.records(chose(Choice.OPT_OUT, 2, on=2, member="a"), of="a")
        wait_for(lambda: found)
        trainer.records(chose(Choice.OPT_OUT, 2, on=2, member="b"), of="b")

        wait_for(lambda: len(found) == 2)

    def test_more_than_waits_for_a_slow_hook_becomes_one_event_that_says_so(
        self, snapshot: Snapshot
    ) -> None:
        """What is dropped without a word is trained on; what is kept without a bound ends the
        process.
        """
        trainer = Trainer(snapshot, waiting_max=10)
        asleep, wake = threading.Event(), threading.Event()
        found: list[Exclusion] = []

        @trainer.hooks.on_exclusion(purpose=PURPOSE)
        def slow(exclusion: Exclusion) -> None:
            found.append(exclusion)
            asleep.set()
            wake.wait(30)

        trainer.hooks.begin()
        trainer.records(chose(Choice.OPT_OUT, 2, on=2, member="first"), of="first")
        assert asleep.wait(10)
        trainer.many(
            {f"m{n}": (chose(Choice.OPT_OUT, 2, on=2, member=f"m{n}"),) for n in range(100)}
        )
        wake.set()

        wait_for(lambda: any(one.cause is ExclusionCause.MANY for one in found))
        trainer.records(chose(Choice.OPT_OUT, 2, on=2, member="last"), of="last")
        wait_for(lambda: "last" in found[-1].members)
        assert [one.cause for one in found].count(ExclusionCause.MANY) == 1
        trainer.hooks.stop()

    @pytest.mark.parametrize("in_one_batch", [True, False])
    def test_what_was_allowed_for_a_moment_while_a_hook_was_busy_is_told_as_excluded_again(
        self, trainer: Trainer, in_one_batch: bool
    ) -> None:
        """Whoever asked in that moment was told yes, and keeps it until told otherwise."""
        asleep, wake = threading.Event(), threading.Event()
        found: list[Exclusion] = []

        @trainer.hooks.on_exclusion(purpose=PURPOSE)
        def slow(exclusion: Exclusion) -> None:
            found.append(exclusion)
            asleep.set()
            wake.wait(30)

        back_in = (US, OUT, chose(Choice.OPT_IN, 3, on=3, observed=2))
        out_again = (*back_in, chose(Choice.OPT_OUT, 4, on=4))
        trainer.records(US, OUT)
        trainer.hooks.begin()
        trainer.records(chose(Choice.OPT_OUT, 2, on=2, member="first"), of="first")
        assert asleep.wait(10)
        if in_one_batch:
            key, home = MEMBER.encode(), partition_of(MEMBER.encode(), PARTITIONS)
            records = [record for events in (back_in, out_again) if (record := folded(*events))]
            keys, values = [key, key], [write_record(record, frame(1)) for record in records]
            earlier = trainer.hooks.states_before(keys)
            trainer.snapshot.apply_records(home, keys, values)
            trainer.hooks.note_records(earlier, keys, values)
        else:
            trainer.records(*back_in)
            trainer.records(*out_again)
        wake.set()

        wait_for(lambda: found[-1].members == (MEMBER,))
        assert found[-1].reason is Reason.OPTED_OUT

    def test_a_member_who_changes_without_end_while_a_hook_sleeps_costs_a_bound(
        self, trainer: Trainer
    ) -> None:
        """A test account in a loop would otherwise fill the memory of every trainer."""
        asleep, wake = threading.Event(), threading.Event()
        found: list[Exclusion] = []

        @trainer.hooks.on_exclusion(purpose=PURPOSE)
        def slow(exclusion: Exclusion) -> None:
            found.append(exclusion)
            asleep.set()
            wake.wait(30)

        trainer.hooks.begin()
        trainer.records(chose(Choice.OPT_OUT, 2, on=2, member="first"), of="first")
        assert asleep.wait(10)
        events: tuple[MemberEvent, ...] = (US,)
        for number in range(2, 50):
            events = (*events, chose(Choice.OPT_IN, number, on=number))
            trainer.records(*events)
        wake.set()

        wait_for(lambda: any(one.cause is ExclusionCause.MANY for one in found))

    def test_nobody_is_called_after_the_stop(self, trainer: Trainer) -> None:
        """A hook whose program has closed its files would raise into nowhere."""
        found: list[Exclusion] = []
        trainer.hooks.on_exclusion(purpose=PURPOSE)(found.append)
        trainer.hooks.begin()
        trainer.hooks.stop()

        trainer.records(US, OUT)

        sleep(0.05)
        assert found == []

    def test_there_are_only_so_many(self, trainer: Trainer) -> None:
        """Each has a thread: a loop that registers would end the process."""
        for _ in range(32):
            trainer.hooks.on_exclusion(purpose=PURPOSE)(lambda _: None)

        with pytest.raises(Refused):
            trainer.hooks.on_control(lambda _: None)


class TestOrdersAndControls:
    def test_each_open_order_is_told_once_also_those_that_were_open_at_the_start(
        self, trainer: Trainer
    ) -> None:
        """An order that nobody is told of is overdue in thirty days."""
        found: list[str] = []

        @trainer.hooks.on_purge_order
        def note(one: PurgeOrder) -> None:
            found.append(one.order_id)

        trainer.orders.append(order("a"))
        trainer.hooks.note_controls()
        trainer.hooks.begin()
        wait_for(lambda: found == ["a"])
        trainer.orders.append(order("b"))
        trainer.hooks.note_controls()
        trainer.hooks.note_controls()

        wait_for(lambda: found == ["a", "b"])
        trainer.orders.append(order("c"))
        trainer.hooks.note_controls()
        wait_for(lambda: found == ["a", "b", "c"])

    def test_an_order_whose_hook_raised_is_told_again(self, snapshot: Snapshot) -> None:
        """Deleting is a duty: a store that was away for a moment must not cost it."""
        trainer = Trainer(snapshot, retry_seconds=0.02)
        found: list[str] = []

        @trainer.hooks.on_purge_order
        def fails_twice(one: PurgeOrder) -> None:
            found.append(one.order_id)
            if len(found) < 3:
                raise OSError("the store is away")

        trainer.orders.append(order("a"))
        trainer.hooks.begin()

        wait_for(lambda: len(found) == 3)
        sleep(0.1)
        assert found == ["a"] * 3
        trainer.hooks.stop()

    def test_an_order_that_was_settled_meanwhile_is_not_told_again(
        self, snapshot: Snapshot
    ) -> None:
        """Somebody would look for what is gone."""
        trainer = Trainer(snapshot, retry_seconds=0.05)
        found: list[str] = []

        @trainer.hooks.on_purge_order
        def settles(one: PurgeOrder) -> None:
            found.append(one.order_id)
            trainer.orders.clear()
            raise OSError("too late")

        trainer.orders.append(order("a"))
        trainer.hooks.begin()

        wait_for(lambda: found)
        sleep(0.2)
        assert found == ["a"]
        trainer.hooks.stop()

    def test_a_control_is_told_once_also_one_that_widens(self, trainer: Trainer) -> None:
        """A page that shows pauses shows the lifts too."""
        found: list[Control] = []
        trainer.control(pause(21, "HK", on=1))
        trainer.hooks.on_control(found.append)
        trainer.hooks.begin()
        end = lift(22, on=2, opt_ins=OptIns.KEEP)

        trainer.control(end)
        trainer.control(end)
        trainer.control(pause(23, "US", on=3, name="other"))

        wait_for(lambda: len(found) == 2)
        assert found[0] == end

    def test_a_hook_that_is_added_later_is_told_of_open_orders_but_not_of_old_controls(
        self, trainer: Trainer
    ) -> None:
        """Notebooks register hooks when the client has long been ready."""
        orders: list[PurgeOrder] = []
        controls: list[Control] = []
        trainer.orders.append(order("a"))
        trainer.control(pause(21, "HK", on=1))
        trainer.hooks.begin()

        trainer.hooks.on_purge_order(orders.append)
        trainer.hooks.on_control(controls.append)
        new = pause(23, "US", on=3, name="other")
        trainer.control(new)

        wait_for(lambda: orders and controls)
        assert controls == [new]


def _rows() -> list[Row | None]:
    places = [None, "HK", "US", "US-CA", "DE", "GB-SCT"]
    rows = [
        Row(jurisdiction=place, category=category, collected=collected)
        for place in places
        for category in (None, "posts", "photos")
        for collected in (None, day(3), day(9))
    ]
    return [None, *rows]


_CONTROLS: list[Control] = [
    policy(901, terms("*"), terms("DE", regime=Regime.OPT_IN), on=0),
    policy(
        902,
        terms("HK", categories=("posts",)),
        terms("US-CA", collected_from=day(5)),
        on=0,
        effective=1,
    ),
    pause(903, "HK", on=2, name="a"),
    pause(904, "EEA", on=2, name="b", categories=("photos",)),
    lift(905, on=12, name="a", opt_ins=OptIns.VOID),
    policy(906, terms("GB", "US", notice_until=day(40)), on=3),
]


class TestNarrowingDetector:
    @given(
        history=histories(size_max=6), seed=st.integers(0, 2**32), picked=st.sets(st.integers(0, 5))
    )
    def test_whoever_is_excluded_from_any_row_that_was_allowed_is_found(
        self, history: list[MemberEvent], seed: int, picked: set[int]
    ) -> None:
        """An exclusion that is not told is one that somebody's cache never learns of."""
        snapshot = Snapshot(PARTITIONS, WORLD)
        for number in sorted(picked | {0}):
            snapshot.apply_control(_CONTROLS[number])
        after = [*history, random_event(Random(seed), len(history) + 1)]
        key, home = MEMBER.encode(), partition_of(MEMBER.encode(), PARTITIONS)
        question = {"purpose": PURPOSE, "known_at": Micros(1 << 62), "stale_detail": ""}

        def answers() -> dict[tuple[Row | None, Micros], bool]:
            return {
                (row, at): snapshot.decide(MemberId(MEMBER), row, at=at, **question).allowed  # type: ignore[arg-type]
                for row in _rows()
                for at in (day(14), day(60))
            }

        for events in (history, after):
            record = folded(*events)
            assert record is not None
            earlier = [(snapshot.records.get(key), snapshot.is_quarantined(key))]
            before = answers()
            snapshot.apply_records(home, [key], [write_record(record, frame(1))])
        found = NarrowingDetector(snapshot, PURPOSE).narrowing(key, earlier, day(14))

        narrowed = [asked for asked, allowed in answers().items() if before[asked] and not allowed]
        assert found is not None or not narrowed

    @pytest.mark.parametrize(
        "event",
        [
            chose(Choice.OPT_IN, 3, on=3),
            chose(Choice.OPT_OUT, 3, on=3, purpose="ads"),
            moved("US", 3, on=3),
            moved("US-CA", 3, on=3),
        ],
    )
    def test_what_excludes_nobody_is_not_found(
        self, snapshot: Snapshot, event: MemberEvent
    ) -> None:
        """If everything were found, the promise above would be worth nothing."""
        home = partition_of(MEMBER.encode(), PARTITIONS)
        earlier: list[StoredState] = []
        for events in ([US], [US, event]):
            record = folded(*events)
            assert record is not None
            earlier = [(snapshot.records.get(MEMBER.encode()), False)]
            snapshot.apply_records(home, [MEMBER.encode()], [write_record(record, frame(1))])

        assert (
            NarrowingDetector(snapshot, PURPOSE).narrowing(MEMBER.encode(), earlier, day(30))
            is None
        )

    def test_a_minor_where_nobody_asks_for_age_is_found_all_the_same(
        self, snapshot: Snapshot
    ) -> None:
        """Rows of another place may ask for it."""
        home = partition_of(MEMBER.encode(), PARTITIONS)
        for events in ([US], [US, moved("US", 3, on=3, age_band=AgeBand.MINOR)]):
            record = folded(*events)
            assert record is not None
            earlier = [(snapshot.records.get(MEMBER.encode()), False)]
            snapshot.apply_records(home, [MEMBER.encode()], [write_record(record, frame(1))])

        found = NarrowingDetector(snapshot, PURPOSE).narrowing(MEMBER.encode(), earlier, day(30))
        assert found == (Reason.OUTSIDE_TERMS, day(30))
