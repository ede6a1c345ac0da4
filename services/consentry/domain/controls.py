"""Pauses, lifts and policies as one value that is read when deciding.

Reordered or repeated, they settle alike.
"""

from __future__ import annotations

import enum
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final, NamedTuple, TypeVar

from consentry.domain.jurisdictions import Jurisdictions
from consentry.domain.values import DAY_MICROS, NAME_PATTERN, Micros

PURGE_WITHIN_DEFAULT: Final = Micros(30 * DAY_MICROS)


_KNOWN_MAX: Final = 50_000
"""Answers remembered at most; rows may name any category."""

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class Regime(enum.StrEnum):
    """What holds for members who have not chosen."""

    NOT_OFFERED = "NOT_OFFERED"
    OPT_IN = "OPT_IN"
    DEFAULT_ON = "DEFAULT_ON"
    UNKNOWN = "UNKNOWN"


class Minors(enum.StrEnum):
    """What terms say about members under age."""

    EXCLUDE_UNLESS_ADULT = "EXCLUDE_UNLESS_ADULT"
    EXCLUDE = "EXCLUDE"
    ALLOW = "ALLOW"
    UNKNOWN = "UNKNOWN"


class PauseBasis(enum.StrEnum):
    """Whether an authority ordered a pause or the platform promised it."""

    ORDER = "ORDER"
    UNDERTAKING = "UNDERTAKING"
    UNKNOWN = "UNKNOWN"


class Reach(enum.StrEnum):
    """Whether a pause also takes stored training data back."""

    PRIOR_AND_FUTURE = "PRIOR_AND_FUTURE"
    GOING_FORWARD = "GOING_FORWARD"
    UNKNOWN = "UNKNOWN"


class OptIns(enum.StrEnum):
    """What a lift makes of earlier opt-ins."""

    VOID = "VOID"
    KEEP = "KEEP"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What a pause covers.

    None means all; a scope with an unknown jurisdiction, or none, covers everything.
    """

    jurisdictions: tuple[str, ...]
    purposes: tuple[str, ...] | None = None
    categories: tuple[str, ...] | None = None

    def covers_use(self, purpose: str, category: str | None) -> bool:
        """Whether the purpose and category are inside; a row without category is inside any."""
        if self.purposes is not None and purpose not in self.purposes:
            return False
        return self.categories is None or category is None or category in self.categories


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseImposed:
    """An authority or the platform stops a use for a scope; keyed by pause and version."""

    event_id: bytes
    pause: str
    version: int
    scope: Scope
    effective_at: Micros
    recorded_at: Micros
    authority: str = ""
    basis: PauseBasis = PauseBasis.UNKNOWN
    reach: Reach = Reach.UNKNOWN
    source: str = ""

    @property
    def requires_purge(self) -> bool:
        """Whether stored training data is to be purged too; an unknown reach is read as the
        stricter one.
        """
        return self.reach is not Reach.GOING_FORWARD


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseLifted:
    """The end of a pause, up to and including a version."""

    event_id: bytes
    pause: str
    version: int
    effective_at: Micros
    recorded_at: Micros
    opt_ins: OptIns = OptIns.VOID
    source: str = ""

    @property
    def voids_opt_ins(self) -> bool:
        """Whether only opt-ins recorded later count; an unknown word is read as the stricter
        one.
        """
        return self.opt_ins is not OptIns.KEEP


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a policy says for some jurisdictions and one purpose. None means no condition."""

    jurisdictions: tuple[str, ...]
    purpose: str
    regime: Regime
    basis: str = "OTHER"
    notice_until: Micros | None = None
    categories: tuple[str, ...] | None = None
    collected_from: Micros | None = None
    minors: Minors = Minors.ALLOW
    purge_on_opt_out: bool = False
    purge_within: Micros = PURGE_WITHIN_DEFAULT


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyPublished:
    """A policy version and its terms; the first matching entry wins."""

    event_id: bytes
    version: str
    terms: tuple[Terms, ...]
    effective_at: Micros
    recorded_at: Micros
    source: str = ""


Control = PauseImposed | PauseLifted | PolicyPublished


class Imposition(NamedTuple):
    """A pause with its place in the log; its times once more, where a search finds them quickly."""

    place: int
    effective_at: Micros
    recorded_at: Micros
    pause: PauseImposed

    def counts(self, at: Micros, known_at: Micros) -> bool:
        """Whether it counts for a question. Source: rule 1."""
        return self.effective_at <= at and self.recorded_at <= known_at


class Lift(NamedTuple):
    """A lift with its place in the log."""

    place: int
    lift: PauseLifted


class OptInVoid(NamedTuple):
    """A lift that voids the opt-ins of a pause's scope, if both count."""

    recorded_at: Micros
    place: int
    lift: PauseLifted
    imposition: Imposition


class TermsEntry(NamedTuple):
    """The first terms of a policy for a scope entry and purpose, sorted so that the one that binds
    comes last.

    A later effective time comes before a later place in the log; `number` is that of the terms in
    the policy.
    """

    effective_at: Micros
    place: int
    number: int
    policy: PolicyPublished
    terms: Terms

    @property
    def precedence(self) -> tuple[int, int, int]:
        """The greater one binds: the policy that took effect last, and in it the first terms that
        match.
        """
        return self.effective_at, self.place, -self.number


@dataclass(frozen=True, slots=True)
class _Index:
    """Controls by what a question asks for.

    `impositions` and `voidings` are by scope entry, the first in log order and the last recorded
    one first. `by_name` has the impositions of a pause in log order. `effective_times` and
    `recorded_times` are distinct and ascending.
    """

    impositions: Mapping[str, tuple[Imposition, ...]] = field(default_factory=dict)
    by_name: Mapping[str, tuple[Imposition, ...]] = field(default_factory=dict)
    lifts: Mapping[str, tuple[Lift, ...]] = field(default_factory=dict)
    voidings: Mapping[str, tuple[OptInVoid, ...]] = field(default_factory=dict)
    entries: Mapping[tuple[str, str], tuple[TermsEntry, ...]] = field(default_factory=dict)
    effective_times: tuple[Micros, ...] = ()
    recorded_times: tuple[Micros, ...] = ()

    def after(self, start: int, controls: Iterable[Control]) -> _Index:
        """The index with more controls, which stand in the log from place `start` on."""
        new = tuple(controls)
        numbered = tuple(enumerate(new, start=start))
        pauses = [
            Imposition(place, control.effective_at, control.recorded_at, control)
            for place, control in numbered
            if isinstance(control, PauseImposed)
        ]
        lifts = [
            Lift(place, control) for place, control in numbered if isinstance(control, PauseLifted)
        ]
        by_name = _grown(self.by_name, ((one.pause.pause, one) for one in pauses))
        pairs = [(one, lift) for lift in lifts for one in by_name.get(lift.lift.pause, ())]
        pairs += [(one, lift) for one in pauses for lift in self.lifts.get(one.pause.pause, ())]
        return _Index(
            impositions=_grown(
                self.impositions, ((code, one) for one in pauses for code in _codes(one.pause))
            ),
            by_name=by_name,
            lifts=_grown(self.lifts, ((one.lift.pause, one) for one in lifts)),
            voidings=_sorted(
                _grown(self.voidings, _voidings(pairs)), self.voidings, key=_last_recorded_first
            ),
            entries=_sorted(_grown(self.entries, _entries(numbered)), self.entries, key=_rank),
            effective_times=_merged(self.effective_times, (one.effective_at for one in new)),
            recorded_times=_merged(self.recorded_times, (one.recorded_at for one in new)),
        )

    def cell(self, at: Micros, known_at: Micros) -> tuple[int, int]:
        """Questions in the same cell have the same controls count for them."""
        return bisect_right(self.effective_times, at), bisect_right(self.recorded_times, known_at)

    def is_the_one(self, imposition: Imposition, at: Micros, known_at: Micros) -> bool:
        """Whether it is the first that counts of those of its pause and version: the others then
        change nothing.
        """
        same = self.by_name[imposition.pause.pause]
        if len(same) == 1:
            return True
        version = imposition.pause.version
        return imposition is next(
            one for one in same if one.pause.version == version and one.counts(at, known_at)
        )

    def is_lifted(self, pause: PauseImposed, at: Micros, known_at: Micros) -> bool:
        """Whether a counting lift ends this version of the pause."""
        lifts = self.lifts.get(pause.pause, ())
        return any(
            lift.version >= pause.version and counts(lift, at, known_at) for _, lift in lifts
        )

    def binding(
        self, holder: str, purpose: str, *, at: Micros, known_at: Micros
    ) -> TermsEntry | None:
        """The last entry for this scope entry and purpose whose policy counts, or None."""
        entries = self.entries.get((holder, purpose), ())
        for place in reversed(range(bisect_right(entries, at, key=_effective_time))):
            if entries[place].policy.recorded_at <= known_at:
                return entries[place]
        return None


def _effective_time(entry: TermsEntry) -> Micros:
    return entry.effective_at


def _rank(entry: TermsEntry) -> tuple[int, int]:
    return entry.effective_at, entry.place


def _codes(pause: PauseImposed) -> Iterable[str]:
    return dict.fromkeys(pause.scope.jurisdictions)


def _voidings(pairs: Iterable[tuple[Imposition, Lift]]) -> Iterator[tuple[str, OptInVoid]]:
    for imposition, (place, lift) in pairs:
        if lift.voids_opt_ins and lift.version >= imposition.pause.version:
            for code in _codes(imposition.pause):
                yield code, OptInVoid(lift.recorded_at, place, lift, imposition)


def _last_recorded_first(voiding: OptInVoid) -> tuple[int, int]:
    return -voiding.recorded_at, -voiding.place


def _entries(
    numbered: Iterable[tuple[int, Control]],
) -> Iterator[tuple[tuple[str, str], TermsEntry]]:
    """Per policy, scope entry and purpose the first terms: the later ones never match first."""
    for place, control in numbered:
        if isinstance(control, PolicyPublished):
            first: dict[tuple[str, str], TermsEntry] = {}
            for number, terms in enumerate(control.terms):
                entry = TermsEntry(control.effective_at, place, number, control, terms)
                for code in terms.jurisdictions:
                    first.setdefault((code, terms.purpose), entry)
            yield from first.items()


def _grown(
    before: Mapping[_Key, tuple[_Value, ...]], pairs: Iterable[tuple[_Key, _Value]]
) -> Mapping[_Key, tuple[_Value, ...]]:
    """The mapping with values added behind those of their key; what did not change is shared."""
    added: dict[_Key, list[_Value]] = {}
    for key, value in pairs:
        added.setdefault(key, []).append(value)
    if not added:
        return before
    return {**before, **{key: (*before.get(key, ()), *values) for key, values in added.items()}}


def _sorted(
    found: Mapping[_Key, tuple[_Value, ...]],
    before: Mapping[_Key, tuple[_Value, ...]],
    *,
    key: Callable[[_Value], tuple[int, int]],
) -> Mapping[_Key, tuple[_Value, ...]]:
    """The mapping with what is new in it in order."""
    if found is before:
        return before
    changed = {name: values for name, values in found.items() if values is not before.get(name)}
    return {**found, **{name: tuple(sorted(values, key=key)) for name, values in changed.items()}}


def _merged(before: tuple[Micros, ...], more: Iterable[Micros]) -> tuple[Micros, ...]:
    new = {
        time
        for time in more
        if (place := bisect_left(before, time)) == len(before) or before[place] != time
    }
    return tuple(sorted((*before, *new))) if new else before


class ApplicableControls(NamedTuple):
    """What the controls say of one use in one jurisdiction: the pause, the terms and the voiding
    lift, if any.
    """

    pause: PauseImposed | None
    policy: PolicyPublished | None
    terms: Terms | None
    voiding_lift: PauseLifted | None


@dataclass(frozen=True)
class Controls:
    """All controls in log order, with the jurisdictions they speak of.

    Extended by `after`, never changed.

    Answers come from an index and are remembered: which controls count changes only at the times
    that some control or group membership names, so between two of these all questions about a use
    have one answer.
    """

    jurisdictions: Jurisdictions
    log: tuple[Control, ...] = ()
    _seen: frozenset[bytes] = field(default=frozenset(), repr=False, compare=False)
    _index: _Index = field(default_factory=_Index, repr=False, compare=False)
    _known: dict[tuple[int, int, str, str, str | None], ApplicableControls] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def after(self, *controls: Control) -> Controls:
        """The controls after these followed in the log; one with a known event id changes nothing.

        Except a pause that says something new: who uses an id twice must not thereby leave a
        regulator unheard.
        """
        new: list[Control] = []
        seen = set(self._seen)
        for control in controls:
            taken = self._widened(control)
            if control.event_id in seen and not (
                isinstance(taken, PauseImposed) and taken not in self.log and taken not in new
            ):
                continue
            seen.add(control.event_id)
            new.append(taken)
        if not new:
            return self
        index = self._index.after(len(self.log), new)
        if not self.log:
            index = replace(
                index, effective_times=_merged(index.effective_times, self.jurisdictions.changes)
            )
        return Controls(self.jurisdictions, (*self.log, *new), frozenset(seen), index)

    def understands(self, control: Control) -> bool:
        """Whether it is known whom and what a pause covers; other controls cover nobody."""
        return self._widened(control) is control

    def _widened(self, control: Control) -> Control:
        """A pause whose scope cannot be understood covers everything: it must never cover too
        little.

        An empty list, or a name that no purpose or category can have, is no way to say what is
        meant.
        """
        if not isinstance(control, PauseImposed):
            return control
        scope = control.scope
        if not scope.jurisdictions or self.jurisdictions.unknown(scope.jurisdictions):
            return replace(control, scope=Scope(jurisdictions=("*",)))
        purposes = scope.purposes if _are_names(scope.purposes) else None
        categories = scope.categories if _are_names(scope.categories) else None
        if (purposes, categories) == (scope.purposes, scope.categories):
            return control
        return replace(control, scope=replace(scope, purposes=purposes, categories=categories))

    def applicable(
        self, jurisdiction: str, purpose: str, category: str | None, *, at: Micros, known_at: Micros
    ) -> ApplicableControls:
        """Everything that the controls say of this use. Times in microseconds.

        Source: rules 5 to 7.
        """
        key = (*self._index.cell(at, known_at), jurisdiction, purpose, category)
        found = self._known.get(key)
        if found is None:
            times = {"at": at, "known_at": known_at}
            policy, terms = self.terms_for(jurisdiction, purpose, **times) or (None, None)
            found = ApplicableControls(
                self.pause_in_force(jurisdiction, purpose, category, **times),
                policy,
                terms,
                self.last_voiding_lift(jurisdiction, purpose, **times),
            )
            if len(self._known) >= _KNOWN_MAX:
                self._known.clear()
            self._known[key] = found
        return found

    def pause_in_force(
        self, jurisdiction: str, purpose: str, category: str | None, *, at: Micros, known_at: Micros
    ) -> PauseImposed | None:
        """The first pause that covers this use and is not lifted, or None. Source: rule 5."""
        first: Imposition | None = None
        for holder in self.jurisdictions.holders(jurisdiction, at=at):
            for imposition in self._index.impositions.get(holder, ()):
                if first is not None and imposition.place >= first.place:
                    break
                if (
                    imposition.counts(at, known_at)
                    and imposition.pause.scope.covers_use(purpose, category)
                    and not self._index.is_lifted(imposition.pause, at, known_at)
                    and self._index.is_the_one(imposition, at, known_at)
                ):
                    first = imposition
                    break
        return None if first is None else first.pause

    def is_lifted(self, pause: PauseImposed, *, at: Micros, known_at: Micros) -> bool:
        """Whether a counting lift ends this version of the pause."""
        return self._index.is_lifted(pause, at, known_at)

    def terms_for(
        self, jurisdiction: str, purpose: str, *, at: Micros, known_at: Micros
    ) -> tuple[PolicyPublished, Terms] | None:
        """The terms that bind: of the latest policy that counts and has a matching entry.

        Source: rule 6.
        """
        best: TermsEntry | None = None
        for holder in self.jurisdictions.holders(jurisdiction, at=at):
            found = self._index.binding(holder, purpose, at=at, known_at=known_at)
            if found is not None and (best is None or found.precedence > best.precedence):
                best = found
        return None if best is None else (best.policy, best.terms)

    def last_voiding_lift(
        self, jurisdiction: str, purpose: str, *, at: Micros, known_at: Micros
    ) -> PauseLifted | None:
        """The last counting lift that voids opt-ins of this jurisdiction and purpose, or None.

        Source: rule 7.
        """
        last, latest = None, (-(1 << 63), -1)
        for holder in self.jurisdictions.holders(jurisdiction, at=at):
            for recorded_at, place, lift, imposition in self._index.voidings.get(holder, ()):
                if (recorded_at, place) <= latest:
                    break
                if (
                    counts(lift, at, known_at)
                    and imposition.counts(at, known_at)
                    and imposition.pause.scope.covers_use(purpose, None)
                    and self._index.is_the_one(imposition, at, known_at)
                ):
                    last, latest = lift, (recorded_at, place)
                    break
        return last

    @cached_property
    def pauses(self) -> tuple[PauseImposed, ...]:
        """Pauses in log order, each version by the first that says it."""
        first: dict[tuple[str, int], PauseImposed] = {}
        for control in self.log:
            if isinstance(control, PauseImposed):
                first.setdefault((control.pause, control.version), control)
        return tuple(first.values())

    @cached_property
    def policies(self) -> tuple[PolicyPublished, ...]:
        """Policies in log order."""
        return tuple(control for control in self.log if isinstance(control, PolicyPublished))

    @cached_property
    def collection_cut_offs(self) -> tuple[Micros, ...]:
        """Every `collected_from` of any terms, ascending: data between two of them is treated
        alike.
        """
        every = {terms.collected_from for policy in self.policies for terms in policy.terms}
        return tuple(sorted(cut_off for cut_off in every if cut_off is not None))

    @cached_property
    def opt_ins_voided_at(self) -> tuple[Micros, ...]:
        """The times at which lifts that void opt-ins were recorded, in microseconds, ascending."""
        times = {
            control.recorded_at
            for control in self.log
            if isinstance(control, PauseLifted) and control.voids_opt_ins
        }
        return tuple(sorted(times))

    @cached_property
    def purges_on_opt_out(self) -> bool:
        """Whether any terms ask for a purge when a member opts out."""
        return any(terms.purge_on_opt_out for policy in self.policies for terms in policy.terms)

    @cached_property
    def purposes(self) -> tuple[str, ...]:
        """Every purpose that any terms name, in order of first mention."""
        return tuple(
            dict.fromkeys(terms.purpose for policy in self.policies for terms in policy.terms)
        )

    def codes_in(self, scope: Iterable[str], *, at: Micros) -> frozenset[str]:
        """The countries of a scope at that time, and the parts of them that may come under other
        terms than those.

        These are the parts of which some terms speak by themselves, and those that are countries
        too: what holds either country holds them, so that they can stand otherwise than both.
        """
        countries = self.jurisdictions.expanded(scope, at=at)
        twins = self.jurisdictions.twins
        return countries | {
            code
            for code in self._subdivisions | twins.keys()
            if code.split("-", 1)[0] in countries or twins.get(code) in countries
        }

    @cached_property
    def _subdivisions(self) -> frozenset[str]:
        named = (
            code
            for policy in self.policies
            for terms in policy.terms
            for code in terms.jurisdictions
        )
        return frozenset(code for code in named if "-" in code)

    def purge_within(
        self, codes: Iterable[str], purposes: Iterable[str] | None, *, at: Micros, known_at: Micros
    ) -> Micros:
        """The time allowed for a purge, in microseconds: the shortest of all terms in force in
        these jurisdictions.

        30 days where there are none. Source: rule 9.
        """
        wanted = self.purposes if purposes is None else tuple(purposes)
        found = (
            self.terms_for(code, purpose, at=at, known_at=known_at)
            for code in codes
            for purpose in wanted
        )
        return min(
            (terms.purge_within for _, terms in filter(None, found)), default=PURGE_WITHIN_DEFAULT
        )


def _are_names(names: tuple[str, ...] | None) -> bool:
    return names is None or (bool(names) and all(NAME_PATTERN.fullmatch(name) for name in names))


def counts(fact: Control, at: Micros, known_at: Micros) -> bool:
    """Whether a control counts for a question. Source: rule 1."""
    return fact.effective_at <= at and fact.recorded_at <= known_at
