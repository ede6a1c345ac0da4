"""What a control would change: which members, where, for what reason, and what new terms open.

Counted, not sent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Final, NamedTuple

from consentry.domain.controls import (
    PURGE_WITHIN_DEFAULT,
    Control,
    Controls,
    Minors,
    PauseImposed,
    PauseLifted,
    PolicyPublished,
    Regime,
    Terms,
)
from consentry.domain.decisions import MemberState, decide_state, member_state
from consentry.domain.jurisdictions import Jurisdictions
from consentry.domain.records import Record
from consentry.domain.values import DAY_MICROS, Micros, Reason
from consentry.domain.wording import date_text

ANY_PURPOSE: Final = "any purpose"
"""Stands for every purpose where no policy names one; it is no name that a purpose can have."""

_NAMED_MAX: Final = 12
_PAST_MICROS: Final = 60_000_000
"""A policy that takes effect so much before it is recorded changes answers about the past."""
_DEFAULT_ON: Final = 2
_OFFERED: Final[Mapping[Regime, int]] = {Regime.OPT_IN: 1, Regime.DEFAULT_ON: _DEFAULT_ON}
"""How far a regime opens a use; 0 for not at all."""
_STRICTNESS: Final[Mapping[Minors, int]] = {Minors.ALLOW: 0, Minors.EXCLUDE: 1}
"""How many a rule on minors leaves out; 2 for all who are not known to be of age."""


class ReasonChange(NamedTuple):
    """Members whose answer becomes another one, or comes for another reason.

    `jurisdiction` is their residence.
    """

    purpose: str
    jurisdiction: str | None
    before: Reason
    after: Reason
    was_allowed: bool
    is_allowed: bool
    members: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Impact:
    """How answers differ at one moment with and without a control. Times in microseconds.

    `covered` has members by last residence, for residences inside the control's scope; `unplaced`
    are those without one. `unchanged` counts the covered members' other answers by purpose and
    reason.
    """

    at: Micros
    known_at: Micros
    members: int
    covered: Mapping[str, int]
    unplaced: int
    changes: tuple[ReasonChange, ...]
    unchanged: Mapping[tuple[str, Reason], int]

    def excluded(self) -> Mapping[str, int]:
        """By purpose, how many members would be allowed no more."""
        return _by_purpose(
            change for change in self.changes if change.was_allowed and not change.is_allowed
        )

    def opened(self) -> Mapping[str, int]:
        """By purpose, how many members would be allowed who were not."""
        return _by_purpose(
            change for change in self.changes if change.is_allowed and not change.was_allowed
        )


def _by_purpose(changes: Iterable[ReasonChange]) -> Mapping[str, int]:
    found: Counter[str] = Counter()
    for change in changes:
        found[change.purpose] += change.members
    return found


class Census:
    """Counts members by all that an answer depends on, so that each kind of member is judged once,
    however many.
    """

    def __init__(
        self, controls: Controls, *, purposes: tuple[str, ...], at: Micros, known_at: Micros
    ) -> None:
        """`controls` are all that will be compared: which lifts an opt-in came before is part of
        its kind.
        """
        self._purposes = purposes
        self._times = {"at": at, "known_at": known_at}
        self._opt_ins_voided_at = controls.opt_ins_voided_at
        self._kinds: dict[tuple[object, ...], tuple[str, MemberState]] = {}
        self._counts: Counter[tuple[object, ...]] = Counter()
        self._members = 0

    def add(self, record: Record, members: int = 1) -> None:
        """Count one member; -1 takes one back."""
        self._members += members
        for purpose in self._purposes:
            own = member_state(record, purpose=purpose, **self._times)
            # Where they live is counted beside the answer, also of those whom it does not decide.
            kind = (purpose, own.jurisdiction, own.equivalence_key(self._opt_ins_voided_at))
            if kind not in self._kinds:
                self._kinds[kind] = (purpose, own)
            self._counts[kind] += members

    def compare(self, before: Controls, after: Controls, scope: Iterable[str]) -> Impact:
        """How the answers of all members counted so far differ, asked of the member alone, without
        a row.
        """
        wanted = frozenset(scope)
        covered: Counter[str] = Counter()
        changed: Counter[tuple[str, str | None, Reason, Reason, bool, bool]] = Counter()
        unchanged: Counter[tuple[str, Reason]] = Counter()
        unplaced = 0
        for kind, (purpose, own) in self._kinds.items():
            members, place = self._counts[kind], own.jurisdiction
            if members == 0:
                continue  # all of them were taken back
            is_covered = place is not None and not wanted.isdisjoint(
                after.jurisdictions.holders(place, at=self._times["at"])
            )
            if purpose == self._purposes[0]:
                unplaced += members if place is None else 0
                covered.update({place: members} if place is not None and is_covered else {})
            was = decide_state(own, None, before, purpose=purpose, **self._times)
            now = decide_state(own, None, after, purpose=purpose, **self._times)
            if was.reason is not now.reason:
                changed[purpose, place, was.reason, now.reason, was.allowed, now.allowed] += members
            elif is_covered:
                unchanged[purpose, now.reason] += members
        return Impact(
            **self._times,
            members=self._members,
            covered=dict(sorted(covered.items())),
            unplaced=unplaced,
            changes=tuple(
                sorted(
                    (ReasonChange(*key, members) for key, members in changed.items()), key=_order
                )
            ),
            unchanged=dict(sorted(unchanged.items())),
        )


def _order(change: ReasonChange) -> tuple[object, ...]:
    """What opens use first, then what closes it, then what only has another reason."""
    weight = (
        0
        if change.is_allowed and not change.was_allowed
        else 1
        if change.was_allowed != change.is_allowed
        else 2
    )
    return (
        weight,
        change.purpose,
        change.jurisdiction or "",
        -change.members,
        change.before,
        change.after,
    )


def scope_of(control: Control, controls: Controls) -> tuple[str, ...]:
    """The jurisdictions that a control speaks of; a lift speaks of those of the pauses that it
    ends.
    """
    if isinstance(control, PauseImposed):
        return control.scope.jurisdictions
    if isinstance(control, PolicyPublished):
        return tuple(dict.fromkeys(code for terms in control.terms for code in terms.jurisdictions))
    return tuple(
        dict.fromkeys(
            code for pause in lifted_by(control, controls) for code in pause.scope.jurisdictions
        )
    )


def purposes_of(control: Control, controls: Controls) -> tuple[str, ...]:
    """The purposes that a control speaks of; every one that terms name where it speaks of all."""
    if isinstance(control, PolicyPublished):
        return tuple(dict.fromkeys(terms.purpose for terms in control.terms))
    named: dict[str, None] = {}
    for pause in [control] if isinstance(control, PauseImposed) else lifted_by(control, controls):
        if pause.scope.purposes is None:
            return controls.purposes or (ANY_PURPOSE,)
        named.update(dict.fromkeys(pause.scope.purposes))
    return tuple(named) or controls.purposes or (ANY_PURPOSE,)


def lifted_by(lift: PauseLifted, controls: Controls) -> tuple[PauseImposed, ...]:
    """The pauses that a lift ends."""
    return tuple(
        pause
        for pause in controls.pauses
        if pause.pause == lift.pause and pause.version <= lift.version
    )


def moments_of(control: Control, *, now: Micros) -> tuple[Micros, ...]:
    """When to ask: once the control is in effect, and again as each notice of a policy ends.

    In microseconds.
    """
    start = max(now, control.effective_at)
    terms = control.terms if isinstance(control, PolicyPublished) else ()
    ends = {
        one.notice_until
        for one in terms
        if one.notice_until is not None and one.notice_until > start
    }
    return (start, *sorted(ends))


def freed(
    lift: PauseLifted, before: Controls, after: Controls, *, at: Micros, known_at: Micros
) -> Mapping[str, list[str]]:
    """By purpose, the jurisdictions in which rows may be used again once a lift has ended its
    pauses.

    There no other pause is in force, and some terms offer the purpose: what a row's member said
    decides.
    """
    found: dict[str, list[str]] = {}
    times = {"at": at, "known_at": known_at}
    for code in sorted(after.codes_in(scope_of(lift, after), at=at)):
        for purpose in purposes_of(lift, after):
            was = before.pause_in_force(code, purpose, None, **times)
            binding = after.terms_for(code, purpose, **times)
            is_offered = binding is not None and binding[1].regime in _OFFERED
            if (
                was is not None
                and is_offered
                and after.pause_in_force(code, purpose, None, **times) is None
            ):
                found.setdefault(purpose, []).append(code)
    return found


def openings(control: Control, before: Controls, *, now: Micros) -> tuple[str, ...]:
    """What a lift or a policy would let in, in words, asked when it takes effect; a pause lets
    nothing in.

    A lift always opens something: at the least, a pause ends. So does a policy that offers
    something, and takes effect at another time than now: what it is compared with is known for now
    only. Times in microseconds.
    """
    if isinstance(control, PauseImposed):
        return ()
    after, at = before.after(control), max(now, control.effective_at)
    if isinstance(control, PauseLifted):
        ended = ", ".join(
            f"{pause.pause} version {pause.version}" for pause in lifted_by(control, after)
        )
        free = freed(control, before, after, at=at, known_at=_everything_known(after, now))
        places = (
            f"{purpose} is no longer paused in "
            f"{named(codes, after.jurisdictions, at=at, most=None)}"
            for purpose, codes in sorted(free.items())
        )
        if _is_repeated(control, before, at=at, known_at=_everything_known(after, now)):
            void = ": the opt-ins since then become void too" if control.voids_opt_ins else ""
            return (f"repeats an earlier lift of the pause {ended}{void}", *places)
        return (f"ends the pause {ended or control.pause}", *places)
    words = (
        f"{change.purpose} in "
        f"{named(change.jurisdictions, after.jurisdictions, at=at, most=None)}: {words}"
        for change in _opening_changes(control, before, now)
        for words in change.opens
    )
    return (*_at_another_time(control, now), *words)


def openings_digest(control: Control, before: Controls, *, now: Micros) -> str:
    """What a control opens, exactly: the pauses that it ends, or the old and new terms wherever
    they let in more.

    Words round off: terms that were narrowed since can give the same ones.
    """
    if isinstance(control, PolicyPublished):
        changes = _opening_changes(control, before, now)
        found = sorted(repr((one.purpose, one.jurisdictions, one.old, one.new)) for one in changes)
    elif isinstance(control, PauseLifted):
        times = {
            "at": max(now, control.effective_at),
            "known_at": _everything_known(before.after(control), now),
        }
        found = sorted(
            repr((one.pause, one.version, one.scope, before.is_lifted(one, **times)))
            for one in lifted_by(control, before)
        )
    else:
        found = []
    return sha256("\n".join(found).encode()).hexdigest()


def _is_repeated(lift: PauseLifted, before: Controls, *, at: Micros, known_at: Micros) -> bool:
    """Whether every pause that a lift names was lifted before it."""
    ended = lifted_by(lift, before)
    return bool(ended) and all(before.is_lifted(pause, at=at, known_at=known_at) for pause in ended)


def _opening_changes(
    policy: PolicyPublished, before: Controls, now: Micros
) -> tuple[TermsChange, ...]:
    after, at = before.after(policy), max(now, policy.effective_at)
    found = terms_changes(policy, before, after, at=at, known_at=_everything_known(after, now))
    return tuple(change for change in found if change.opens)


def _everything_known(controls: Controls, now: Micros) -> Micros:
    """A time by which every control is recorded, also one by somebody whose clock is ahead."""
    return max(now, *(control.recorded_at for control in controls.log))


def _at_another_time(policy: PolicyPublished, now: Micros) -> tuple[str, ...]:
    """Why a policy that offers something opens more than what is known now tells."""
    if all(terms.regime not in _OFFERED for terms in policy.terms):
        return ()
    if policy.effective_at > now:
        return (
            f"takes effect on {date_text(policy.effective_at)}, when terms may have been narrowed "
            "by then",
        )
    if policy.effective_at < policy.recorded_at - _PAST_MICROS:
        return (f"takes effect in the past, on {date_text(policy.effective_at)}",)
    return ()


class TermsChange(NamedTuple):
    """Jurisdictions in which a purpose comes under other terms; None: under none.

    The terms name no jurisdictions here.

    `opens` says in words how the new terms let in what the old ones kept out; empty where they do
    not. `paused` are those of the jurisdictions in which a pause keeps it closed for as long as it
    lasts.
    """

    purpose: str
    jurisdictions: tuple[str, ...]
    old: Terms | None
    new: Terms | None
    opens: tuple[str, ...]
    paused: tuple[str, ...]


def terms_changes(
    policy: PolicyPublished, before: Controls, after: Controls, *, at: Micros, known_at: Micros
) -> tuple[TermsChange, ...]:
    """Where a policy changes the terms that bind at a time, jurisdictions with the same change
    together.
    """
    times = {"at": at, "known_at": known_at}
    found: dict[tuple[str, Terms | None, Terms | None], list[str]] = {}
    codes = sorted(after.codes_in(scope_of(policy, after), at=at))
    for purpose in purposes_of(policy, after):
        for code in codes:
            old = _content(before.terms_for(code, purpose, **times))
            new = _content(after.terms_for(code, purpose, **times))
            if old != new:
                found.setdefault((purpose, old, new), []).append(code)
    return tuple(
        TermsChange(
            purpose,
            tuple(places),
            old,
            new,
            widenings(old, new),
            tuple(place for place in places if after.pause_in_force(place, purpose, None, **times)),
        )
        for (purpose, old, new), places in found.items()
    )


def _content(binding: tuple[PolicyPublished, Terms] | None) -> Terms | None:
    """What terms say, whichever other jurisdictions they say it of."""
    return None if binding is None else replace(binding[1], jurisdictions=())


def in_force(
    policy: PolicyPublished, controls: Controls, *, at: Micros, known_at: Micros
) -> Mapping[str, list[str]]:
    """By purpose, the jurisdictions in which this policy's terms are the ones that bind."""
    found: dict[str, list[str]] = {}
    for code in sorted(controls.codes_in(scope_of(policy, controls), at=at)):
        for purpose in purposes_of(policy, controls):
            binding = controls.terms_for(code, purpose, at=at, known_at=known_at)
            if binding is not None and binding[0].event_id == policy.event_id:
                found.setdefault(purpose, []).append(code)
    return found


def widenings(old: Terms | None, new: Terms | None) -> tuple[str, ...]:
    """How new terms let in what the old ones kept out, or keep what those purged, in words; empty
    where in no way.
    """
    return () if new is None else (*_let_in(old, new), *_kept(old, new))


def _let_in(old: Terms | None, new: Terms) -> tuple[str, ...]:
    was = 0 if old is None else _OFFERED.get(old.regime, 0)
    is_now = _OFFERED.get(new.regime, 0)
    if is_now == 0:
        return ()
    ends = (
        date_text(new.notice_until)
        if new.notice_until is not None and is_now == _DEFAULT_ON
        else ""
    )
    if old is None or was == 0:
        return (
            "it is offered, which it was "
            f"not{f' (before {ends} only to who opted in)' if ends else ''}",
        )
    found = []
    if is_now > was:
        found.append(
            f"members who have not chosen are used too{f', from {ends} on' if ends else ''}"
        )
    if was == is_now == _DEFAULT_ON and _ends_earlier(old, new):
        found.append(
            "the notice ends "
            f"{f'on {date_text(new.notice_until)}' if new.notice_until else 'at once'}"
        )
    if _STRICTNESS.get(new.minors, 2) < _STRICTNESS.get(old.minors, 2):
        found.append(
            "minors are used too"
            if new.minors is Minors.ALLOW
            else "members of unknown age are used too"
        )
    if old.categories is not None and (
        new.categories is None or not set(new.categories) <= set(old.categories)
    ):
        more = (
            "all"
            if new.categories is None
            else ", ".join(sorted(set(new.categories) - set(old.categories)))
        )
        found.append(f"more categories are used: {more}")
    if old.collected_from is not None and (
        new.collected_from is None or new.collected_from < old.collected_from
    ):
        since = "any time" if new.collected_from is None else date_text(new.collected_from)
        found.append(f"older data is used: from {since}")
    return tuple(found)


def _kept(old: Terms | None, new: Terms) -> tuple[str, ...]:
    found = []
    if old is not None and old.purge_on_opt_out and not new.purge_on_opt_out:
        found.append("an opt-out no longer has stored data purged")
    within = PURGE_WITHIN_DEFAULT if old is None else old.purge_within
    if new.purge_within > within:
        found.append(f"a purge may take {_days(new.purge_within)} days instead of {_days(within)}")
    return tuple(found)


def _days(time: Micros) -> str:
    return f"{time / DAY_MICROS:g}"


def _ends_earlier(old: Terms, new: Terms) -> bool:
    return old.notice_until is not None and (
        new.notice_until is None or new.notice_until < old.notice_until
    )


def named(
    codes: Iterable[str], jurisdictions: Jurisdictions, *, at: Micros, most: int | None = _NAMED_MAX
) -> str:
    """Codes as a person would write them: whole groups by name, `everywhere`, or what is left out
    of it.

    A part that is a country too is left unsaid where it is said as that country. At most `most` are
    named; None: all.
    """
    every = set(codes)
    twins = jurisdictions.twins
    left = {code for code in every if twins.get(code) not in every}
    countries = jurisdictions.expanded(("*",), at=at)
    if countries <= left:
        return ", ".join(("everywhere", *sorted(left - countries)))
    missing = countries - left
    if len(missing) < len(countries) // 2:
        rest = sorted(code for code in left if "-" in code)
        return ", ".join((f"everywhere but {_listed(missing, jurisdictions, at, most)}", *rest))
    return _listed(left, jurisdictions, at, most)


def _listed(
    codes: Iterable[str], jurisdictions: Jurisdictions, at: Micros, most: int | None
) -> str:
    left, groups = set(codes), []
    for group in sorted(jurisdictions.groups):
        members = jurisdictions.expanded((group,), at=at)
        if members and members <= left:
            groups.append(group)
            left -= members
    names = [*groups, *sorted(left)]
    more = 0 if most is None else len(names) - most
    return ", ".join(names) if more <= 0 else f"{', '.join(names[:most])} and {more} more"
