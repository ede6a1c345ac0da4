"""Hooks are called for everything that narrows use, on threads of their own.

Where they cannot be given all of it, they are given an event that says so.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from time import monotonic, sleep

import pytest
from tests.sizes import PATIENCE
from tests.strategies import (
    MEMBER,
    PURPOSE,
    chose,
    day,
    erased,
    folded,
    lift,
    moved,
    pause,
    policy,
    terms,
)

from consentry.domain.controls import Control, OptIns, Reach, Regime
from consentry.domain.errors import InvalidInput, Refused
from consentry.domain.events import MemberEvent
from consentry.domain.orders import PurgeOrder, PurgeReason
from consentry.domain.values import Choice, MemberId, Reason
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.trainer.hooks import Exclusion, ExclusionCause, Hooks
from consentry.trainer.hooks.listeners import MEMBERS_MAX
from consentry.wire.frames import frame
from consentry.wire.frontiers import Frontier
from consentry.wire.partitions import partition_of
from consentry.wire.records import write_record

PARTITIONS = 4


class Trainer:
    """A follower of the log, reduced to the part that the hooks see."""

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
    """A follower of the small world, with nobody known."""
    trainer = Trainer(snapshot)
    yield trainer
    trainer.hooks.stop()


def wait_for(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Return once the condition holds."""
    until = monotonic() + PATIENCE * seconds
    while not condition():
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
    def test_an_opt_out_is_reported_with_its_member_and_reason(self, trainer: Trainer) -> None:
        """A cache of allowed members that does not hear of it goes on serving data of an opt-out."""
        exclusions: list[Exclusion] = []
        trainer.hooks.on_exclusion(purpose=PURPOSE)(exclusions.append)
        trainer.records(US)
        trainer.hooks.begin()

        trainer.records(US, OUT)

        wait_for(lambda: exclusions)
        assert exclusions == [
            Exclusion(
                purpose=PURPOSE,
                cause=ExclusionCause.RECORD,
                at=day(30),
                reason=Reason.OPTED_OUT,
                members=(MEMBER,),
            )
        ]

    def test_neither_a_state_from_before_the_start_nor_a_wider_use_is_reported(
        self, trainer: Trainer
    ) -> None:
        """Millions of old opt-outs at every start would hide the one that is new."""
        exclusions: list[Exclusion] = []
        trainer.hooks.on_exclusion(purpose=PURPOSE)(exclusions.append)
        trainer.records(US, OUT)
        trainer.control(pause(5, "DE", on=3))
        trainer.hooks.begin()

        trainer.records(US, OUT, chose(Choice.OPT_IN, 3, on=3, observed=2))
        trainer.records(moved("US", 7, on=1, member="new"), of="new")
        trainer.records(US, OUT, chose(Choice.OPT_IN, 3, on=3, observed=2), erased(4, on=4))

        wait_for(lambda: exclusions)
        assert [(exclusion.reason, exclusion.members) for exclusion in exclusions] == [
            (Reason.ERASED, (MEMBER,))
        ]

    def test_an_opt_out_for_another_purpose_is_not_reported(self, trainer: Trainer) -> None:
        """Whoever hears of everything stops listening."""
        exclusions: list[Exclusion] = []
        trainer.hooks.on_exclusion(purpose=PURPOSE)(exclusions.append)
        trainer.records(US)
        trainer.hooks.begin()

        trainer.records(US, chose(Choice.OPT_OUT, 2, on=2, purpose="ads"))
        trainer.records(moved("US", 7, on=1), chose(Choice.OPT_OUT, 8, on=2), of="other")

        wait_for(lambda: exclusions)
        assert [exclusion.members for exclusion in exclusions] == [("other",)]

    def test_an_opt_out_dated_ahead_is_reported_at_once_with_its_time(
        self, trainer: Trainer
    ) -> None:
        """On the day it takes effect no further message comes."""
        exclusions: list[Exclusion] = []
        trainer.hooks.on_exclusion(purpose=PURPOSE)(exclusions.append)
        trainer.records(US)
        trainer.hooks.begin()

        trainer.records(US, chose(Choice.OPT_OUT, 2, on=2, effective_at=day(50)))

        wait_for(lambda: exclusions)
        assert (exclusions[0].reason, exclusions[0].at) == (Reason.OPTED_OUT, day(50))

    def test_a_pause_is_reported_as_its_scope_and_names_nobody(self, trainer: Trainer) -> None:
        """A pause of a country with a million members must not become a million calls."""
        exclusions: list[Exclusion] = []
        trainer.hooks.on_exclusion(purpose=PURPOSE)(exclusions.append)
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

        wait_for(lambda: exclusions)
        assert exclusions == [
            Exclusion(purpose=PURPOSE, cause=ExclusionCause.CONTROL, at=day(31), control=hong_kong)
        ]

    @pytest.mark.parametrize(
        ("control", "is_reported"),
        [
            (pause(11, "HK", on=3, purposes=("ads",)), False),
            (pause(11, "HK", on=3, purposes=None), True),
            (lift(12, on=3, opt_ins=OptIns.KEEP), False),
            (lift(12, on=3, opt_ins=OptIns.VOID), True),
            (policy(13, terms("*", regime=Regime.OPT_IN), on=3), True),
        ],
    )
    def test_a_control_is_reported_if_it_may_exclude_somebody(
        self, trainer: Trainer, control: Control, is_reported: bool
    ) -> None:
        """A lift that voids opt-ins, or a stricter policy, excludes as surely as a pause."""
        exclusions: list[Exclusion] = []
        trainer.hooks.on_exclusion(purpose=PURPOSE)(exclusions.append)
        trainer.hooks.begin()

        trainer.control(control)
        trainer.control(pause(14, "US", on=4, name="last"))

        wait_for(lambda: exclusions and getattr(exclusions[-1].control, "pause", "") == "last")
        assert (len(exclusions) == 2) == is_reported

    def test_an_unreadable_event_of_an_unknown_member_is_reported_once_for_its_partition(
        self, trainer: Trainer
    ) -> None:
        """All members of that partition are quarantined from then on."""
        exclusions: list[Exclusion] = []
        trainer.hooks.on_exclusion(purpose=PURPOSE)(exclusions.append)
        trainer.hooks.begin()

        foreign = (partition_of(MEMBER.encode(), PARTITIONS) + 1) % PARTITIONS
        trainer.frontier(foreign, tainted=True)
        trainer.frontier(foreign, tainted=True)
        trainer.records(US, OUT)

        wait_for(lambda: len(exclusions) > 1)
        causes = [(exclusion.cause, exclusion.partitions) for exclusion in exclusions]
        assert causes == [(ExclusionCause.PARTITION, (foreign,)), (ExclusionCause.RECORD, ())]

    def test_a_damaged_record_is_reported_as_quarantined(self, trainer: Trainer) -> None:
        """The damaged one may have been the opt-out."""
        exclusions: list[Exclusion] = []
        trainer.hooks.on_exclusion(purpose=PURPOSE)(exclusions.append)
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

        wait_for(lambda: exclusions)
        assert (exclusions[0].reason, exclusions[0].members) == (Reason.QUARANTINED, (MEMBER,))

    def test_a_long_list_of_members_comes_in_parts(self, trainer: Trainer) -> None:
        """One call with all of them could be more than its reader can hold."""
        exclusions: list[Exclusion] = []
        trainer.hooks.on_exclusion(purpose=PURPOSE)(exclusions.append)
        trainer.hooks.begin()
        names = [f"m{number}" for number in range(MEMBERS_MAX + 1)]

        trainer.many({name: (chose(Choice.OPT_OUT, 2, on=2, member=name),) for name in names})

        wait_for(lambda: sum(len(exclusion.members) for exclusion in exclusions) == len(names))
        assert max(len(exclusion.members) for exclusion in exclusions) <= MEMBERS_MAX
        assert {member for exclusion in exclusions for member in exclusion.members} == set(names)

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
        exclusions: list[Exclusion] = []

        @trainer.hooks.on_exclusion(purpose=PURPOSE)
        def sleeps(_exclusion: Exclusion) -> None:
            asleep.set()
            wake.wait(30)

        @trainer.hooks.on_exclusion(purpose=PURPOSE)
        def raises(_exclusion: Exclusion) -> None:
            raise RuntimeError("of somebody else")

        trainer.hooks.on_exclusion(purpose=PURPOSE)(exclusions.append)
        trainer.hooks.begin()
        trainer.records(chose(Choice.OPT_OUT, 2, on=2, member="a"), of="a")
        assert asleep.wait(10)

        # On the thread that follows: this would not return while a hook sleeps on it.
        trainer.records(chose(Choice.OPT_OUT, 2, on=2, member="b"), of="b")

        wait_for(
            lambda: (
                {member for exclusion in exclusions for member in exclusion.members} == {"a", "b"}
            )
        )
        assert not wake.is_set()
        wake.set()

    def test_a_hook_that_raised_is_called_with_the_next_exclusion(self, trainer: Trainer) -> None:
        """One error of a cache must not end all later events."""
        exclusions: list[Exclusion] = []

        @trainer.hooks.on_exclusion(purpose=PURPOSE)
        def raises_first(exclusion: Exclusion) -> None:
            exclusions.append(exclusion)
            if len(exclusions) == 1:
                raise RuntimeError("of somebody else")

        trainer.hooks.begin()
        trainer.records(chose(Choice.OPT_OUT, 2, on=2, member="a"), of="a")
        wait_for(lambda: exclusions)
        trainer.records(chose(Choice.OPT_OUT, 2, on=2, member="b"), of="b")

        wait_for(lambda: len(exclusions) == 2)

    def test_more_changes_than_may_wait_for_a_slow_hook_become_one_event_that_says_so(
        self, snapshot: Snapshot
    ) -> None:
        """A change dropped in silence is trained on; changes kept without a bound fill the memory."""
        trainer = Trainer(snapshot, waiting_max=10)
        asleep, wake = threading.Event(), threading.Event()
        exclusions: list[Exclusion] = []

        @trainer.hooks.on_exclusion(purpose=PURPOSE)
        def slow(exclusion: Exclusion) -> None:
            exclusions.append(exclusion)
            asleep.set()
            wake.wait(30)

        trainer.hooks.begin()
        trainer.records(chose(Choice.OPT_OUT, 2, on=2, member="first"), of="first")
        assert asleep.wait(10)
        trainer.many(
            {f"m{n}": (chose(Choice.OPT_OUT, 2, on=2, member=f"m{n}"),) for n in range(100)}
        )
        wake.set()

        wait_for(lambda: any(exclusion.cause is ExclusionCause.MANY for exclusion in exclusions))
        trainer.records(chose(Choice.OPT_OUT, 2, on=2, member="last"), of="last")
        wait_for(lambda: "last" in exclusions[-1].members)
        assert [exclusion.cause for exclusion in exclusions].count(ExclusionCause.MANY) == 1
        trainer.hooks.stop()

    @pytest.mark.parametrize("in_one_batch", [True, False])
    def test_a_member_allowed_for_a_moment_while_a_hook_was_busy_is_reported_as_excluded_again(
        self, trainer: Trainer, in_one_batch: bool
    ) -> None:
        """Whoever asked in that moment got a yes, and relies on it until they hear otherwise."""
        asleep, wake = threading.Event(), threading.Event()
        exclusions: list[Exclusion] = []

        @trainer.hooks.on_exclusion(purpose=PURPOSE)
        def slow(exclusion: Exclusion) -> None:
            exclusions.append(exclusion)
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

        wait_for(lambda: exclusions[-1].members == (MEMBER,))
        assert exclusions[-1].reason is Reason.OPTED_OUT

    def test_a_member_who_changes_without_end_while_a_hook_sleeps_takes_bounded_memory(
        self, trainer: Trainer
    ) -> None:
        """A test account in a loop would otherwise fill the memory of every trainer."""
        asleep, wake = threading.Event(), threading.Event()
        exclusions: list[Exclusion] = []

        @trainer.hooks.on_exclusion(purpose=PURPOSE)
        def slow(exclusion: Exclusion) -> None:
            exclusions.append(exclusion)
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

        wait_for(lambda: any(exclusion.cause is ExclusionCause.MANY for exclusion in exclusions))

    def test_no_hook_is_called_after_the_stop(self, trainer: Trainer) -> None:
        """A hook whose program has closed its files would raise where nobody sees it."""
        exclusions: list[Exclusion] = []
        trainer.hooks.on_exclusion(purpose=PURPOSE)(exclusions.append)
        trainer.hooks.begin()
        trainer.hooks.stop()

        trainer.records(US, OUT)

        sleep(0.05)
        assert exclusions == []

    def test_the_number_of_hooks_is_bounded(self, trainer: Trainer) -> None:
        """Each has a thread: a loop that registers would end the process."""
        for _ in range(32):
            trainer.hooks.on_exclusion(purpose=PURPOSE)(lambda _: None)

        with pytest.raises(Refused):
            trainer.hooks.on_control(lambda _: None)


class TestOrdersAndControls:
    def test_each_open_order_is_given_once_also_those_open_at_the_start(
        self, trainer: Trainer
    ) -> None:
        """An order that nobody hears of is overdue in thirty days."""
        order_ids: list[str] = []

        @trainer.hooks.on_purge_order
        def note(order: PurgeOrder) -> None:
            order_ids.append(order.order_id)

        trainer.orders.append(order("a"))
        trainer.hooks.note_controls()
        trainer.hooks.begin()
        wait_for(lambda: order_ids == ["a"])
        trainer.orders.append(order("b"))
        trainer.hooks.note_controls()
        trainer.hooks.note_controls()

        wait_for(lambda: order_ids == ["a", "b"])
        trainer.orders.append(order("c"))
        trainer.hooks.note_controls()
        wait_for(lambda: order_ids == ["a", "b", "c"])

    def test_an_order_whose_hook_raised_is_given_again(self, snapshot: Snapshot) -> None:
        """Deleting is a duty: a store that was away for a moment must not cost it."""
        trainer = Trainer(snapshot, retry_seconds=0.02)
        order_ids: list[str] = []

        @trainer.hooks.on_purge_order
        def fails_twice(order: PurgeOrder) -> None:
            order_ids.append(order.order_id)
            if len(order_ids) < 3:
                raise OSError("the store is away")

        trainer.orders.append(order("a"))
        trainer.hooks.begin()

        wait_for(lambda: len(order_ids) == 3)
        sleep(0.1)
        assert order_ids == ["a"] * 3
        trainer.hooks.stop()

    def test_an_order_that_was_settled_meanwhile_is_not_given_again(
        self, snapshot: Snapshot
    ) -> None:
        """Somebody would search for rows that are already deleted."""
        trainer = Trainer(snapshot, retry_seconds=0.05)
        order_ids: list[str] = []

        @trainer.hooks.on_purge_order
        def settles(order: PurgeOrder) -> None:
            order_ids.append(order.order_id)
            trainer.orders.clear()
            raise OSError("too late")

        trainer.orders.append(order("a"))
        trainer.hooks.begin()

        wait_for(lambda: order_ids)
        sleep(0.2)
        assert order_ids == ["a"]
        trainer.hooks.stop()

    def test_each_control_is_given_once_also_one_that_widens_use(self, trainer: Trainer) -> None:
        """A page that shows pauses shows the lifts too."""
        controls: list[Control] = []
        trainer.control(pause(21, "HK", on=1))
        trainer.hooks.on_control(controls.append)
        trainer.hooks.begin()
        end = lift(22, on=2, opt_ins=OptIns.KEEP)

        trainer.control(end)
        trainer.control(end)
        trainer.control(pause(23, "US", on=3, name="other"))

        wait_for(lambda: len(controls) == 2)
        assert controls[0] == end

    def test_a_hook_added_later_is_given_open_orders_but_no_old_controls(
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
