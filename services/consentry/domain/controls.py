"""Pauses, lifts and policies as one value that the rules read when deciding.

Repeated, or recorded in another order, they come to the same answers.
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
    """The rule of a policy's terms for members who have not chosen."""

    NOT_OFFERED = "NOT_OFFERED"
    OPT_IN = "OPT_IN"
    DEFAULT_ON = "DEFAULT_ON"
    UNKNOWN = "UNKNOWN"


class Minors(enum.StrEnum):
    """The rule of a policy's terms for members under age."""

    EXCLUDE_UNLESS_ADULT = "EXCLUDE_UNLESS_ADULT"
    EXCLUDE = "EXCLUDE"
    ALLOW = "ALLOW"
    UNKNOWN = "UNKNOWN"


class PauseBasis(enum.StrEnum):
    """The basis of a pause: an authority ordered it, or the platform promised it."""

    ORDER = "ORDER"
    UNDERTAKING = "UNDERTAKING"
    UNKNOWN = "UNKNOWN"


class Reach(enum.StrEnum):
    """The reach of a pause: future use only, or stored training data too."""

    PRIOR_AND_FUTURE = "PRIOR_AND_FUTURE"
    GOING_FORWARD = "GOING_FORWARD"
    UNKNOWN = "UNKNOWN"


class OptIns(enum.StrEnum):
    """The effect of a lift on earlier opt-ins, by the rules."""

    VOID = "VOID"
    KEEP = "KEEP"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """The jurisdictions, purposes and categories that a pause covers, by the rules.

    None means all; a scope with an unknown jurisdiction, or none, covers everything.
    """

    jurisdictions: tuple[str, ...]
    purposes: tuple[str, ...] | None = None
    categories: tuple[str, ...] | None = None

    def covers_use(self, purpose: str, category: str | None) -> bool:
        """Return True if a pause's scope has purpose and category.

        A row without category is inside any.
        """
        if self.purposes is not None and purpose not in self.purposes:
            return False
        return self.categories is None or category is None or category in self.categories


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseImposed:
    """A pause: an authority or the platform stops a use for a scope.

    It is keyed by pause and version.
    """

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
        """True if a pause means stored data must go; an unknown reach is read as stricter."""
        return self.reach is not Reach.GOING_FORWARD


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseLifted:
    """A lift: the end of a pause, up to and including a version."""

    event_id: bytes
    pause: str
    version: int
    effective_at: Micros
    recorded_at: Micros
    opt_ins: OptIns = OptIns.VOID
    source: str = ""

    @property
    def voids_opt_ins(self) -> bool:
        """True if after the lift only later opt-ins count; so for an unknown word too.

        It is read as the stricter one.
        """
        return self.opt_ins is not OptIns.KEEP


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The terms of a policy for some jurisdictions and one purpose, as the rules read them.

    None means no condition.
    """

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
    """A policy version and its terms, as the rules read it; the first matching entry wins."""

    event_id: bytes
    version: str
    terms: tuple[Terms, ...]
    effective_at: Micros
    recorded_at: Micros
    source: str = ""


Control = PauseImposed | PauseLifted | PolicyPublished


class Imposition(NamedTuple):
    """A pause with its position in the log, and its times once more for a quick search."""

    place: int
    effective_at: Micros
    recorded_at: Micros
    pause: PauseImposed

    def counts(self, at: Micros, known_at: Micros) -> bool:
        """Return True if the imposed pause counts for a question. Source: rule 1."""
        return self.effective_at <= at and self.recorded_at <= known_at


class Lift(NamedTuple):
    """A lift of a pause with its position in the log."""

    place: int
    lift: PauseLifted


class OptInVoid(NamedTuple):
    """A lift that voids the opt-ins in a pause's scope, if the rules count both."""

    recorded_at: Micros
    place: int
    lift: PauseLifted
    imposition: Imposition


class TermsEntry(NamedTuple):
    """The first terms of a policy for a scope entry and purpose; sorted, the last one binds.

    A later effective time comes first, then a later position in the log; `number` is that of the
    terms in the policy.
    """

    effective_at: Micros
    place: int
    number: int
    policy: PolicyPublished
    terms: Terms

    @property
    def precedence(self) -> tuple[int, int, int]:
        """The rank among the terms that match a question: the greatest binds.

        It is that of the policy that took effect last, and in it of the first terms that match.
        """
        return self.effective_at, self.place, -self.number


@dataclass(frozen=True, slots=True)
class _Index:
    """The controls, found by the scope entry, pause or purpose of a question.

    `impositions` are by scope entry, the first in log order first. `opt_in_voids` are too, the last
    recorded first. `by_name` has the impositions of a pause in log order. `effective_times` and
    `recorded_times` are distinct and ascending.
    """

    impositions: Mapping[str, tuple[Imposition, ...]] = field(default_factory=dict)
    by_name: Mapping[str, tuple[Imposition, ...]] = field(default_factory=dict)
    lifts: Mapping[str, tuple[Lift, ...]] = field(default_factory=dict)
    opt_in_voids: Mapping[str, tuple[OptInVoid, ...]] = field(default_factory=dict)
    entries: Mapping[tuple[str, str], tuple[TermsEntry, ...]] = field(default_factory=dict)
    effective_times: tuple[Micros, ...] = ()
    recorded_times: tuple[Micros, ...] = ()

    def after(self, start: int, controls: Iterable[Control]) -> _Index:
        """Return the index with more controls, whose positions in the log begin at `start`."""
        new = tuple(controls)
        numbered = tuple(enumerate(new, start=start))
        pauses: list[Imposition] = []
        lifts: list[Lift] = []
        for place, control in numbered:
            if isinstance(control, PauseImposed):
                effective_at = control.effective_at
                recorded_at = control.recorded_at
                pauses.append(Imposition(place, effective_at, recorded_at, control))
            elif isinstance(control, PauseLifted):
                lifts.append(Lift(place, control))
        by_name = _grown(self.by_name, ((one.pause.pause, one) for one in pauses))
        pairs: list[tuple[Imposition, Lift]] = []
        for lift in lifts:
            pairs += [(one, lift) for one in by_name.get(lift.lift.pause, ())]
        for one in pauses:
            pairs += [(one, lift) for lift in self.lifts.get(one.pause.pause, ())]
        opt_in_voids = _grown(self.opt_in_voids, _opt_in_voids(pairs))
        entries = _grown(self.entries, _entries(numbered))
        return _Index(
            impositions=_grown(self.impositions, _by_code(pauses)),
            by_name=by_name,
            lifts=_grown(self.lifts, ((one.lift.pause, one) for one in lifts)),
            opt_in_voids=_sorted(opt_in_voids, self.opt_in_voids, key=_last_recorded_first),
            entries=_sorted(entries, self.entries, key=_rank),
            effective_times=_merged(self.effective_times, (one.effective_at for one in new)),
            recorded_times=_merged(self.recorded_times, (one.recorded_at for one in new)),
        )

    def cell(self, at: Micros, known_at: Micros) -> tuple[int, int]:
        """Return the cell of a question: the same controls count for all questions in one cell."""
        return bisect_right(self.effective_times, at), bisect_right(self.recorded_times, known_at)

    def is_first_that_counts(self, imposition: Imposition, at: Micros, known_at: Micros) -> bool:
        """Return whether this imposition is the one that counts for its pause and version.

        That is the first of those that count; the others then change nothing.
        """
        same = self.by_name[imposition.pause.pause]
        if len(same) == 1:
            return True
        version = imposition.pause.version
        return imposition is next(
            one for one in same if one.pause.version == version and one.counts(at, known_at)
        )

    def is_lifted(self, pause: PauseImposed, at: Micros, known_at: Micros) -> bool:
        """Return whether a counting lift ends this version of the pause."""
        lifts = self.lifts.get(pause.pause, ())
        return any(
            lift.version >= pause.version and counts(lift, at, known_at) for _, lift in lifts
        )

    def binding(
        self, holder: str, purpose: str, *, at: Micros, known_at: Micros
    ) -> TermsEntry | None:
        """Return the last entry for a scope entry and purpose whose policy counts, or None."""
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


def _by_code(impositions: Iterable[Imposition]) -> Iterator[tuple[str, Imposition]]:
    for imposition in impositions:
        for code in _codes(imposition.pause):
            yield code, imposition


def _opt_in_voids(pairs: Iterable[tuple[Imposition, Lift]]) -> Iterator[tuple[str, OptInVoid]]:
    for imposition, (place, lift) in pairs:
        if lift.voids_opt_ins and lift.version >= imposition.pause.version:
            for code in _codes(imposition.pause):
                yield code, OptInVoid(lift.recorded_at, place, lift, imposition)


def _last_recorded_first(void: OptInVoid) -> tuple[int, int]:
    return -void.recorded_at, -void.place


def _entries(
    numbered: Iterable[tuple[int, Control]],
) -> Iterator[tuple[tuple[str, str], TermsEntry]]:
    """Yield the first terms of each policy by scope entry and purpose; no others ever match."""
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
    """Return the mapping with values added behind those of their key; unchanged ones are shared."""
    added: dict[_Key, list[_Value]] = {}
    for key, value in pairs:
        added.setdefault(key, []).append(value)
    if not added:
        return before
    grown = dict(before)
    for key, values in added.items():
        grown[key] = (*before.get(key, ()), *values)
    return grown


def _sorted(
    found: Mapping[_Key, tuple[_Value, ...]],
    before: Mapping[_Key, tuple[_Value, ...]],
    *,
    key: Callable[[_Value], tuple[int, int]],
) -> Mapping[_Key, tuple[_Value, ...]]:
    """Return the mapping with its changed values in order."""
    if found is before:
        return before
    ordered = dict(found)
    for name, values in found.items():
        if values is not before.get(name):
            ordered[name] = tuple(sorted(values, key=key))
    return ordered


def _merged(before: tuple[Micros, ...], more: Iterable[Micros]) -> tuple[Micros, ...]:
    new: set[Micros] = set()
    for time in more:
        place = bisect_left(before, time)
        if place == len(before) or before[place] != time:
            new.add(time)
    if not new:
        return before
    return tuple(sorted((*before, *new)))


class ApplicableControls(NamedTuple):
    """The pause, policy, terms and voiding lift that apply to one use in one place.

    The place is a jurisdiction; None stands where there is none of a kind.

    `voiding_lift` is the last lift that voids opt-ins there.
    """

    pause: PauseImposed | None
    policy: PolicyPublished | None
    terms: Terms | None
    voiding_lift: PauseLifted | None


@dataclass(frozen=True)
class Controls:
    """All pauses, lifts and policies in log order, as the rules read them to decide.

    With the jurisdictions they name; `after` extends them.

    Answers come from an index and are remembered: the controls that count change only at the times
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
        """Return the controls with one more; one with a known event id changes nothing.

        The exception is a pause that says something new: an event id used twice must not leave a
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
            times = _merged(index.effective_times, self.jurisdictions.changes)
            index = replace(index, effective_times=times)
        return Controls(self.jurisdictions, (*self.log, *new), frozenset(seen), index)

    def understands(self, control: Control) -> bool:
        """Return True if a control's scope is understood; only that of a pause may not be."""
        return self._widened(control) is control

    def _widened(self, control: Control) -> Control:
        """Return a pause whose scope cannot be understood as one that covers everything.

        A pause must never cover too little. An empty list, or a name that no purpose or category
        can have, is no way to say which are meant. Other controls are returned as they are.
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
        """Return the pause, policy terms and voiding lift that apply to this use.

        Times in microseconds. Source: rules 5 to 7.
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
        """Return the first pause that covers this use and is not lifted, or None.

        Source: rule 5.
        """
        first: Imposition | None = None
        for holder in self.jurisdictions.holders(jurisdiction, at=at):
            for imposition in self._index.impositions.get(holder, ()):
                if first is not None and imposition.place >= first.place:
                    break
                if (
                    imposition.counts(at, known_at)
                    and imposition.pause.scope.covers_use(purpose, category)
                    and not self._index.is_lifted(imposition.pause, at, known_at)
                    and self._index.is_first_that_counts(imposition, at, known_at)
                ):
                    first = imposition
                    break
        return None if first is None else first.pause

    def is_lifted(self, pause: PauseImposed, *, at: Micros, known_at: Micros) -> bool:
        """Return True if a counting lift ends this version of the pause."""
        return self._index.is_lifted(pause, at, known_at)

    def terms_for(
        self, jurisdiction: str, purpose: str, *, at: Micros, known_at: Micros
    ) -> tuple[PolicyPublished, Terms] | None:
        """Return the terms that bind: of the latest policy that counts and has a match.

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
        """Return the last counting lift that voids opt-ins of this use, or None.

        Source: rule 7.
        """
        last, latest = None, (-(1 << 63), -1)
        for holder in self.jurisdictions.holders(jurisdiction, at=at):
            for recorded_at, place, lift, imposition in self._index.opt_in_voids.get(holder, ()):
                if (recorded_at, place) <= latest:
                    break
                if (
                    counts(lift, at, known_at)
                    and imposition.counts(at, known_at)
                    and imposition.pause.scope.covers_use(purpose, None)
                    and self._index.is_first_that_counts(imposition, at, known_at)
                ):
                    last, latest = lift, (recorded_at, place)
                    break
        return last

    @cached_property
    def pauses(self) -> tuple[PauseImposed, ...]:
        """The pauses in log order, each version by the first that imposes it."""
        first: dict[tuple[str, int], PauseImposed] = {}
        for control in self.log:
            if isinstance(control, PauseImposed):
                first.setdefault((control.pause, control.version), control)
        return tuple(first.values())

    @cached_property
    def policies(self) -> tuple[PolicyPublished, ...]:
        """The policies in log order."""
        return tuple(control for control in self.log if isinstance(control, PolicyPublished))

    @cached_property
    def collection_cut_offs(self) -> tuple[Micros, ...]:
        """Every `collected_from` of any policy's terms, ascending.

        Data collected between two of them gets the same answers.
        """
        cut_offs: set[Micros] = set()
        for policy in self.policies:
            for terms in policy.terms:
                if terms.collected_from is not None:
                    cut_offs.add(terms.collected_from)
        return tuple(sorted(cut_offs))

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
        """True if any policy's terms ask for a purge when a member opts out."""
        return any(terms.purge_on_opt_out for policy in self.policies for terms in policy.terms)

    @cached_property
    def purposes(self) -> tuple[str, ...]:
        """Every purpose that any policy's terms name, in order of first mention."""
        names: dict[str, None] = {}
        for policy in self.policies:
            for terms in policy.terms:
                names[terms.purpose] = None
        return tuple(names)

    def codes_in(self, scope: Iterable[str], *, at: Micros) -> frozenset[str]:
        """Return the countries of a scope, and parts of them that may have other policy terms.

        The scope is read as of a time.

        These are the parts that some terms name by themselves, and those that are countries too:
        the scope entries of either country hold them, so their answers can differ from both.
        """
        countries = self.jurisdictions.expanded(scope, at=at)
        twins = self.jurisdictions.twins
        parts: set[str] = set()
        for code in self._subdivisions | twins.keys():
            if code.split("-", 1)[0] in countries or twins.get(code) in countries:
                parts.add(code)
        return countries | parts

    @cached_property
    def _subdivisions(self) -> frozenset[str]:
        parts: set[str] = set()
        for policy in self.policies:
            for terms in policy.terms:
                parts.update(code for code in terms.jurisdictions if "-" in code)
        return frozenset(parts)

    def purge_within(
        self, codes: Iterable[str], purposes: Iterable[str] | None, *, at: Micros, known_at: Micros
    ) -> Micros:
        """Return the time allowed for a purge, in microseconds: the shortest of all terms in force.

        30 days where no terms are in force in these jurisdictions. Source: rule 9.
        """
        wanted = self.purposes if purposes is None else tuple(purposes)
        limits: list[Micros] = []
        for code in codes:
            for purpose in wanted:
                binding = self.terms_for(code, purpose, at=at, known_at=known_at)
                if binding is not None:
                    _, terms = binding
                    limits.append(terms.purge_within)
        return min(limits, default=PURGE_WITHIN_DEFAULT)


def _are_names(names: tuple[str, ...] | None) -> bool:
    return names is None or (bool(names) and all(NAME_PATTERN.fullmatch(name) for name in names))


def counts(fact: Control, at: Micros, known_at: Micros) -> bool:
    """Return True if the rules count a control for a question. Source: rule 1."""
    return fact.effective_at <= at and fact.recorded_at <= known_at
