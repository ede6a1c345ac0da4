"""Pauses, lifts and policies as one value that is read when deciding. Reordered or repeated, they settle alike."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final

from consentry.domain.jurisdictions import Jurisdictions
from consentry.domain.values import DAY_MICROS, Micros

PURGE_WITHIN_DEFAULT: Final = Micros(30 * DAY_MICROS)


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
    """What a pause covers. None means all; a scope with an unknown jurisdiction, or none, covers everything."""

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
    def takes_back(self) -> bool:
        """Whether stored training data is to be purged too; an unknown reach is read as the stricter one."""
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
        """Whether only opt-ins recorded later count; an unknown word is read as the stricter one."""
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


@dataclass(frozen=True)
class Controls:
    """All controls in log order, with the jurisdictions they speak of. Extended by `after`, never changed."""

    jurisdictions: Jurisdictions
    log: tuple[Control, ...] = ()
    _seen: frozenset[bytes] = field(default=frozenset(), repr=False)

    def after(self, *controls: Control) -> Controls:
        """The controls after these followed in the log; one with a known event id changes nothing.

        Except a pause that says something new: who uses an id twice must not thereby leave a regulator unheard.
        """
        log, seen = list(self.log), set(self._seen)
        for control in controls:
            taken = self._widened(control)
            if control.event_id not in seen or (isinstance(taken, PauseImposed) and taken not in log):
                seen.add(control.event_id)
                log.append(taken)
        return replace(self, log=tuple(log), _seen=frozenset(seen)) if len(log) > len(self.log) else self

    def _widened(self, control: Control) -> Control:
        """A pause whose scope cannot be understood covers everything: it must never cover too little."""
        if not isinstance(control, PauseImposed):
            return control
        scope = control.scope.jurisdictions
        if scope and not self.jurisdictions.unknown(scope):
            return control
        return replace(control, scope=Scope(jurisdictions=("*",)))

    @cached_property
    def pauses(self) -> tuple[PauseImposed, ...]:
        """Pauses in log order, each version once: a repeated imposition changes nothing."""
        first: dict[tuple[str, int], PauseImposed] = {}
        for control in self.log:
            if isinstance(control, PauseImposed):
                first.setdefault((control.pause, control.version), control)
        return tuple(first.values())

    @cached_property
    def lifts(self) -> tuple[PauseLifted, ...]:
        """Lifts in log order."""
        return tuple(control for control in self.log if isinstance(control, PauseLifted))

    @cached_property
    def policies(self) -> tuple[PolicyPublished, ...]:
        """Policies, the one that binds last first: latest effective time, ties by later place in the log."""
        published = [control for control in self.log if isinstance(control, PolicyPublished)]
        ranked = sorted(enumerate(published), key=lambda pair: (pair[1].effective_at, pair[0]), reverse=True)
        return tuple(policy for _, policy in ranked)

    @cached_property
    def collection_cut_offs(self) -> tuple[Micros, ...]:
        """Every `collected_from` of any terms, ascending: data between two of them is treated alike."""
        every = {terms.collected_from for policy in self.policies for terms in policy.terms}
        return tuple(sorted(cut_off for cut_off in every if cut_off is not None))

    @cached_property
    def purges_on_opt_out(self) -> bool:
        """Whether any terms ask for a purge when a member opts out."""
        return any(terms.purge_on_opt_out for policy in self.policies for terms in policy.terms)

    def is_lifted(self, pause: PauseImposed, *, at: Micros, known_at: Micros) -> bool:
        """Whether a counting lift ends this version of the pause."""
        return any(
            lift.pause == pause.pause and lift.version >= pause.version and counts(lift, at, known_at)
            for lift in self.lifts
        )

    def pause_in_force(
        self, jurisdiction: str, purpose: str, category: str | None, *, at: Micros, known_at: Micros
    ) -> PauseImposed | None:
        """The first pause that covers this use and is not lifted, or None. Source: rule 5."""
        holders = self.jurisdictions.holders(jurisdiction, at=at)
        for pause in self.pauses:
            if (
                counts(pause, at, known_at)
                and pause.scope.covers_use(purpose, category)
                and not holders.isdisjoint(pause.scope.jurisdictions)
                and not self.is_lifted(pause, at=at, known_at=known_at)
            ):
                return pause
        return None

    def terms_for(
        self, jurisdiction: str, purpose: str, *, at: Micros, known_at: Micros
    ) -> tuple[PolicyPublished, Terms] | None:
        """The terms that bind: of the latest policy that counts and has a matching entry. Source: rule 6."""
        holders = self.jurisdictions.holders(jurisdiction, at=at)
        for policy in self.policies:
            if counts(policy, at, known_at):
                for terms in policy.terms:
                    if terms.purpose == purpose and not holders.isdisjoint(terms.jurisdictions):
                        return policy, terms
        return None

    def last_voiding_lift(self, jurisdiction: str, purpose: str, *, at: Micros, known_at: Micros) -> PauseLifted | None:
        """The last counting lift that voids opt-ins of this jurisdiction and purpose, or None. Source: rule 7."""
        holders = self.jurisdictions.holders(jurisdiction, at=at)
        last: PauseLifted | None = None
        for lift in self.lifts:
            if (
                lift.voids_opt_ins
                and counts(lift, at, known_at)
                and (last is None or lift.recorded_at >= last.recorded_at)
            ):
                scopes = (
                    pause.scope
                    for pause in self.pauses
                    if pause.pause == lift.pause and pause.version <= lift.version and counts(pause, at, known_at)
                )
                if any(
                    scope.covers_use(purpose, None) and not holders.isdisjoint(scope.jurisdictions) for scope in scopes
                ):
                    last = lift
        return last

    @cached_property
    def purposes(self) -> tuple[str, ...]:
        """Every purpose that any terms name, in order of first mention."""
        return tuple(dict.fromkeys(terms.purpose for policy in reversed(self.policies) for terms in policy.terms))

    def purge_within(
        self, scope: Iterable[str], purposes: Iterable[str] | None, *, at: Micros, known_at: Micros
    ) -> Micros:
        """The time allowed for a purge, in microseconds: the shortest of all terms in force in the scope.

        30 days where there are none. Source: rule 9.
        """
        wanted = self.purposes if purposes is None else tuple(purposes)
        found = (
            self.terms_for(code, purpose, at=at, known_at=known_at)
            for code in self.jurisdictions.expanded(scope, at=at)
            for purpose in wanted
        )
        return min((terms.purge_within for _, terms in filter(None, found)), default=PURGE_WITHIN_DEFAULT)


def counts(fact: Control, at: Micros, known_at: Micros) -> bool:
    """Whether a control counts for a question. Source: rule 1."""
    return fact.effective_at <= at and fact.recorded_at <= known_at
