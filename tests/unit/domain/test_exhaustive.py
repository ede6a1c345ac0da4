"""Every short sequence of events and controls, none left out: what random histories may miss by bad
luck.

Two members, two purposes, a pause, a lift and a policy make an alphabet of 19 letters. Sequences
are walked depth first, so that those with one beginning share its work. The members differ in name
only: the first letter about a member is about the first of them, which covers every sequence up to
renaming. `make exhaustive` goes one letter further.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple, TypeVar

import pytest
from tests.strategies import WORLD, chose, day, erased, folded, lift, moved, pause, policy, terms

from consentry.domain import decisions, records
from consentry.domain.controls import Control, Controls, PauseLifted, Regime, _Index
from consentry.domain.decisions import decide
from consentry.domain.events import Fact, FactKind, MemberEvent
from consentry.domain.records import Record, fold, next_choice
from consentry.domain.values import Choice, MemberId, Reason
from consentry.wire.frames import frame
from consentry.wire.records import append_fact, fact_body, read_record, write_record

LENGTH = int(os.environ.get("CONSENTRY_EXHAUSTIVE_LENGTH", "4"))
FRAME = frame(7)
MEMBERS = (MemberId("m1"), MemberId("m2"))
ON_BY_DEFAULT, BY_OPT_IN = "on_by_default", "by_opt_in"
PURPOSES = (ON_BY_DEFAULT, BY_OPT_IN)
END = day(100)

T = TypeVar("T")
Met = Counter[tuple[str, Reason]]


class Letter(NamedTuple):
    """One thing that happens: to a member, for a purpose; controls are for everybody."""

    what: str
    member: MemberId | None = None
    purpose: str | None = None


OUT, INFORMED, UNINFORMED, MOVE, ERASE = (
    "opt-out",
    "informed opt-in",
    "uninformed opt-in",
    "relocate",
    "erase",
)
PAUSE, LIFT, POLICY = Letter("pause"), Letter("lift"), Letter("policy")
ABOUT = {
    member: (
        *(
            Letter(what, member, purpose)
            for what in (OUT, INFORMED, UNINFORMED)
            for purpose in PURPOSES
        ),
        *(Letter(what, member) for what in (MOVE, ERASE)),
    )
    for member in MEMBERS
}
CONTROLS = (PAUSE, LIFT, POLICY)
NOTHING: tuple[Letter, ...] = ()
UNDER_WAY = (POLICY, *(Letter(MOVE, member) for member in MEMBERS))
"""A policy and two homes: from here on four letters are enough to opt in, to be paused, lifted and
asked again.
"""


class State(NamedTuple):
    """Where a sequence has led: the events behind it, each member's stored bytes and the
    controls.
    """

    letters: tuple[Letter, ...] = ()
    events: tuple[MemberEvent | Control, ...] = ()
    stored: Mapping[MemberId, bytes] = {}
    controls: Controls = Controls(WORLD)

    def record(self, member: MemberId) -> Record | None:
        """A member's record as a worker reads it back."""
        raw = self.stored.get(member)
        return None if raw is None else read_record(raw, member.encode())

    def after(self, letter: Letter) -> State:
        """The state once this has happened too, on a day of its own."""
        number = len(self.letters) + 1
        letters = (*self.letters, letter)
        if letter.member is None:
            control = control_of(letter, number)
            return State(
                letters, (*self.events, control), self.stored, self.controls.after(control)
            )
        record = self.record(letter.member)
        event = event_of(letter, number, record.version if record else 0)
        raw = write_record(fold(record, event), FRAME)
        before = self.stored.get(letter.member)
        if before is not None:
            assert quickly(before, event) in (None, raw), f"the quick way differs after {letters}"
            assert Letter(ERASE, letter.member) not in self.letters or raw == before, (
                f"an erasure ends after {letters}"
            )
        return State(
            letters, (*self.events, event), {**self.stored, letter.member: raw}, self.controls
        )


def quickly(raw: bytes, event: MemberEvent) -> bytes | None:
    """The stored bytes after one more event, if they need not be read for it."""
    fact = event.fact()
    return append_fact(raw, event.member.encode(), fact_body(fact), fact.tag)


@cache
def control_of(letter: Letter, number: int) -> Control:
    """The control behind a letter: always the same pause, so that one repeated and one lifted
    before are among them.
    """
    if letter == PAUSE:
        return pause(number, "US", on=number, purposes=None)
    if letter == LIFT:
        return lift(number, on=number)
    by_opt_in = terms("*", purpose=BY_OPT_IN, regime=Regime.OPT_IN)
    return policy(number, terms("*", purpose=ON_BY_DEFAULT), by_opt_in, on=number)


@cache
def event_of(letter: Letter, number: int, version: int) -> MemberEvent:
    """The event behind a letter; `version` is that of the record which an informed member has
    seen.
    """
    assert letter.member is not None
    if letter.what == MOVE:
        return moved("US", number, on=number, member=letter.member)
    if letter.what == ERASE:
        return erased(number, on=number, member=letter.member)
    choice = Choice.OPT_OUT if letter.what == OUT else Choice.OPT_IN
    observed = version if letter.what == INFORMED else None
    return chose(
        choice, number, on=number, observed=observed, member=letter.member, purpose=letter.purpose
    )


def may_use(letters: tuple[Letter, ...], member: MemberId, purpose: str) -> bool:
    """Whether the sequence leaves a basis for this use and nothing against it: the rules in a few
    lines.
    """
    own = [
        letter.what
        for letter in letters
        if letter.member == member and letter.purpose in {None, purpose}
    ]
    is_opted_out = OUT in own and INFORMED not in since_last(OUT, own)
    is_paused = PAUSE in letters and LIFT not in letters
    if ERASE in own or MOVE not in own or POLICY not in letters or is_paused or is_opted_out:
        return False
    epoch = since_last(LIFT, letters) if PAUSE in letters else letters
    opt_ins = {Letter(INFORMED, member, purpose), Letter(UNINFORMED, member, purpose)}
    return purpose == ON_BY_DEFAULT or not opt_ins.isdisjoint(epoch)


def since_last(what: T, sequence: Sequence[T]) -> Sequence[T]:
    """What follows the last of these; all, if there is none."""
    return sequence[len(sequence) - sequence[::-1].index(what) :] if what in sequence else sequence


def walk(state: State, length: int, met: Met, *, both: bool = False) -> Met:
    """Check every continuation by up to `length` letters, and count in `met` how often each answer
    was given.

    Until the first letter about a member, `both` is False and that letter can only be about the
    first one.
    """
    if length:
        for letter in (*CONTROLS, *ABOUT[MEMBERS[0]], *(ABOUT[MEMBERS[1]] if both else ())):
            following = state.after(letter)
            check(following, met)
            walk(following, length - 1, met, both=both or letter.member is not None)
    return met


def check(state: State, met: Met) -> None:
    """Hold one state to everything that is promised of it."""
    stored = {member: state.record(member) for member in MEMBERS}
    check_last_step(state, stored)
    check_replay(state, stored)
    for member, record in stored.items():
        for purpose in PURPOSES:
            decision = decide(record, None, state.controls, purpose=purpose, at=END, known_at=END)
            expected = may_use(state.letters, member, purpose)
            assert decision.allowed == expected, (
                f"{member} is {decision.reason} for {purpose} after {state.letters}"
            )
            met[purpose, decision.reason] += 1


def check_last_step(state: State, stored: Mapping[MemberId, Record | None]) -> None:
    """What was folded and stored step by step equals what is folded at once in memory."""
    last = state.letters[-1].member
    if last is None:
        at_once = Controls(WORLD).after(*(one for one in state.events if isinstance(one, Control)))
        assert state.controls == at_once, (
            f"step by step differs from all at once after {state.letters}"
        )
    else:
        history = [
            one for one in state.events if not isinstance(one, Control) and one.member == last
        ]
        assert stored[last] == folded(*history), (
            f"step by step differs from all at once after {state.letters}"
        )


def check_replay(state: State, stored: Mapping[MemberId, Record | None]) -> None:
    """A broker that gives the first k events again, for any k, changes neither a record nor the
    controls.

    As no single one of them changes anything, one after the other, neither do the first k.
    """
    for event in state.events:
        if isinstance(event, Control):
            assert state.controls.after(event) == state.controls, (
                f"a replay changes controls after {state.letters}"
            )
        else:
            record, raw = stored[event.member], state.stored[event.member]
            assert fold(record, event) == record, f"a replay changes a record after {state.letters}"
            assert quickly(raw, event) is None, (
                f"a replay changes stored bytes after {state.letters}"
            )


def begun(*letters: Letter) -> State:
    """The state after these letters."""
    state = State()
    for letter in letters:
        state = state.after(letter)
    return state


class TestEverySequence:
    """Whoever is wronged by one of these was not even unlucky: it takes no more than four
    messages.
    """

    @pytest.mark.model
    @pytest.mark.timeout(7200)
    @pytest.mark.parametrize("start", [NOTHING, UNDER_WAY], ids=["from nothing", "under way"])
    def test_is_folded_once_and_allows_what_has_a_basis_and_nothing_else(
        self, start: tuple[Letter, ...]
    ) -> None:
        """One *allowed* without a basis is the failure that this system is there to prevent."""
        met = walk(begun(*start), LENGTH, Counter())

        everything = len(CONTROLS) + sum(map(len, ABOUT.values()))
        up_to_renaming = sum(
            (everything**length + len(CONTROLS) ** length) // 2 for length in range(1, LENGTH + 1)
        )
        assert sum(met.values()) == up_to_renaming * len(MEMBERS) * len(PURPOSES)
        assert {reason for _, reason in met} >= {Reason.ERASED, Reason.PAUSED, Reason.OPTED_OUT}
        assert met[ON_BY_DEFAULT, Reason.DEFAULT_ON]
        assert met[BY_OPT_IN, Reason.OPTED_IN]
        assert met[BY_OPT_IN, Reason.OPT_IN_REQUIRED]


def any_opt_in_cancels(standing: Fact | None, fact: Fact) -> Fact | None:
    """A choice rule that does not ask what the person had seen."""
    seen = (
        fact._replace(observed_version=fact.version - 1) if fact.kind is FactKind.OPTED_IN else fact
    )
    return next_choice(standing, seen)


def fold_without_looking_back(record: Record | None, member: MemberId, fact: Fact) -> Record:
    """A fold that takes every delivery for a new event."""
    before = record or Record(member=member)
    new = fact._replace(version=before.version + 1)
    return (
        before
        if before.erasure
        else Record(member=member, version=new.version, facts=(*before.facts, new))
    )


class TestTheCheckItself:
    """A check that cannot fail proves nothing: with one guard off it has to find a sequence that
    shows it.
    """

    @pytest.mark.parametrize(
        ("owner", "name", "broken", "found"),
        [
            (decisions, "next_choice", any_opt_in_cancels, "is OPTED_IN for"),
            (records, "fold_fact", fold_without_looking_back, "a replay changes a record"),
            (Fact, "binds", lambda *_: False, "an erasure ends"),
            (PauseLifted, "voids_opt_ins", False, "is OPTED_IN for by_opt_in"),
            (_Index, "is_lifted", lambda *_, **__: False, "is PAUSED for"),
            (Controls, "pause_in_force", lambda *_, **__: None, "is DEFAULT_ON for"),
        ],
        ids=["uninformed", "repeated", "unlatched", "not voided", "never lifted", "never paused"],
    )
    def test_finds_a_guard_that_is_off(
        self, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, broken: object, found: str
    ) -> None:
        """Hurt when this breaks: everybody who trusts the walk above."""
        monkeypatch.setattr(owner, name, broken)

        with pytest.raises(AssertionError, match=found):
            walk(begun(*UNDER_WAY), 3, Counter())
