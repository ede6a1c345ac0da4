"""The new uses that a control opens by the rules: in words for a second person, as a digest.

The digest is of the terms.

A lift ends pauses; a policy may offer what was not offered, or keep what was to be purged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Final, NamedTuple

from consentry.domain.controls import (
    PURGE_WITHIN_DEFAULT,
    Control,
    Controls,
    Minors,
    PauseLifted,
    PolicyPublished,
    Regime,
    Terms,
)
from consentry.domain.impact import lifted_by, purposes_of, scope_of
from consentry.domain.values import DAY_MICROS, Micros
from consentry.domain.wording import date_text, named

_PAST_MICROS: Final = 60_000_000
"""A policy that takes effect this long before it is recorded changes answers about the past."""
_DEFAULT_ON: Final = 2
_OFFERED: Final[Mapping[Regime, int]] = {Regime.OPT_IN: 1, Regime.DEFAULT_ON: _DEFAULT_ON}
"""The degree to which a regime opens a use; 0 for a regime that does not offer it."""
_STRICTNESS: Final[Mapping[Minors, int]] = {Minors.ALLOW: 0, Minors.EXCLUDE: 1}
"""The members that a rule on minors leaves out: 2 for all who are not known to be of age."""


class Openings(NamedTuple):
    """The new uses that a control opens by the rules, in words and as a digest.

    `words` has one clause for each, and is empty where it opens nothing. `digest` stands for the
    exact change: words round off, and terms that were narrowed since can give the same ones.
    """

    words: tuple[str, ...]
    digest: str


class _Comparison(NamedTuple):
    """The controls without and with one more of them, and the times at which both are asked."""

    before: Controls
    after: Controls
    at: Micros
    known_at: Micros

    @classmethod
    def of(cls, control: Control, before: Controls, now: Micros) -> _Comparison:
        """Return the controls without and with one more, asked when that one takes effect.

        Everything recorded counts, also by somebody whose clock is ahead.
        """
        after = before.after(control)
        recorded_times = (known.recorded_at for known in after.log)
        return cls(before, after, max(now, control.effective_at), max(now, *recorded_times))

    def named(self, codes: Iterable[str]) -> str:
        """Return codes as a person would write them, all of them."""
        return named(codes, self.after.jurisdictions, at=self.at, most=None)


def openings(control: Control, before: Controls, *, now: Micros) -> Openings:
    """Return the new uses that a control would open, by the rules, when it takes effect.

    `now` is in microseconds.

    A pause opens nothing. A lift always opens something: at the least, a pause ends. So does a
    policy that offers something and takes effect at another time than now: the terms that it is
    compared with are known for now only.
    """
    if isinstance(control, PauseLifted):
        return _openings_of_lift(control, _Comparison.of(control, before, now))
    if isinstance(control, PolicyPublished):
        return _openings_of_policy(control, _Comparison.of(control, before, now), now)
    return Openings((), _digest([]))


def _openings_of_lift(lift: PauseLifted, comparison: _Comparison) -> Openings:
    """Return the pauses that a lift ends, and the jurisdictions that are then no longer paused."""
    times = {"at": comparison.at, "known_at": comparison.known_at}
    ended = lifted_by(lift, comparison.before)
    was_lifted = [comparison.before.is_lifted(pause, **times) for pause in ended]
    names = ", ".join(f"{pause.pause} version {pause.version}" for pause in ended)
    if ended and all(was_lifted):
        clause = f"repeats an earlier lift of the pause {names}"
        if lift.voids_opt_ins:
            clause += ": the opt-ins since then become void too"
    else:
        clause = f"ends the pause {names or lift.pause}"
    words = [clause]
    newly_free = freed(lift, comparison.before, comparison.after, **times)
    for purpose, codes in sorted(newly_free.items()):
        words.append(f"{purpose} is no longer paused in {comparison.named(codes)}")
    states = zip(ended, was_lifted, strict=True)
    digest = _digest((pause.pause, pause.version, pause.scope, lifted) for pause, lifted in states)
    return Openings(tuple(words), digest)


def _openings_of_policy(policy: PolicyPublished, comparison: _Comparison, now: Micros) -> Openings:
    """Return the jurisdictions and purposes in which the policy's terms let in more than before."""
    changes = terms_changes(
        policy, comparison.before, comparison.after, at=comparison.at, known_at=comparison.known_at
    )
    opening = [change for change in changes if change.opens]
    words = [*_at_another_time(policy, now)]
    for change in opening:
        where = f"{change.purpose} in {comparison.named(change.jurisdictions)}"
        words += [f"{where}: {clause}" for clause in change.opens]
    digest = _digest(
        (change.purpose, change.jurisdictions, change.old, change.new) for change in opening
    )
    return Openings(tuple(words), digest)


def _digest(parts: Iterable[object]) -> str:
    return sha256("\n".join(sorted(map(repr, parts))).encode()).hexdigest()


def _at_another_time(policy: PolicyPublished, now: Micros) -> tuple[str, ...]:
    """Return why a policy that offers something opens more than what is known now shows."""
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


def freed(
    lift: PauseLifted, before: Controls, after: Controls, *, at: Micros, known_at: Micros
) -> Mapping[str, list[str]]:
    """Return the jurisdictions, by purpose, in which the rules let rows be used after a lift.

    No other pause is in force there, and some terms offer the purpose: the choice of a row's member
    decides. Times in microseconds.
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


class TermsChange(NamedTuple):
    """Jurisdictions in which a policy puts a purpose under other terms; None: under no terms.

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
    """Return each change that a policy makes to the terms that bind, with its jurisdictions.

    Times in microseconds.
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
    """Return terms without the jurisdictions that they are for."""
    return None if binding is None else replace(binding[1], jurisdictions=())


def in_force(
    policy: PolicyPublished, controls: Controls, *, at: Micros, known_at: Micros
) -> Mapping[str, list[str]]:
    """Return the jurisdictions, by purpose, in which this policy's terms bind."""
    found: dict[str, list[str]] = {}
    for code in sorted(controls.codes_in(scope_of(policy, controls), at=at)):
        for purpose in purposes_of(policy, controls):
            binding = controls.terms_for(code, purpose, at=at, known_at=known_at)
            if binding is not None and binding[0].event_id == policy.event_id:
                found.setdefault(purpose, []).append(code)
    return found


def widenings(old: Terms | None, new: Terms | None) -> tuple[str, ...]:
    """Return in words how a policy's new terms allow or keep what the old ones did not.

    They let in what the old ones kept out, or keep what those purged.

    Empty where they do neither.
    """
    if new is None:
        return ()
    return (*_let_in(old, new), *_kept(old, new))


def _let_in(old: Terms | None, new: Terms) -> tuple[str, ...]:
    was = 0
    if old is not None:
        was = _OFFERED.get(old.regime, 0)
    is_now = _OFFERED.get(new.regime, 0)
    if is_now == 0:
        return ()
    has_notice = new.notice_until is not None and is_now == _DEFAULT_ON
    notice_end = ""
    if has_notice and new.notice_until:
        notice_end = date_text(new.notice_until)
    if old is None or was == 0:
        clause = "it is offered, which it was not"
        if has_notice:
            clause += f" (before {notice_end} only to who opted in)"
        return (clause,)
    return tuple(_more_let_in(old, new, notice_end, has_notice=has_notice))


def _more_let_in(old: Terms, new: Terms, notice_end: str, *, has_notice: bool) -> list[str]:
    was = _OFFERED.get(old.regime, 0)
    is_now = _OFFERED.get(new.regime, 0)
    found = []
    if is_now > was:
        clause = "members who have not chosen are used too"
        if has_notice:
            clause += f", from {notice_end} on"
        found.append(clause)
    if was == is_now == _DEFAULT_ON and _ends_earlier(old, new):
        ends = "at once"
        if has_notice:
            ends = f"on {notice_end}"
        found.append(f"the notice ends {ends}")
    if _STRICTNESS.get(new.minors, 2) < _STRICTNESS.get(old.minors, 2):
        who = "members of unknown age"
        if new.minors is Minors.ALLOW:
            who = "minors"
        found.append(f"{who} are used too")
    more = _more_categories(old, new)
    if more:
        found.append(f"more categories are used: {more}")
    if _reaches_further_back(old, new):
        start = "any time"
        if new.collected_from is not None:
            start = date_text(new.collected_from)
        found.append(f"older data is used: from {start}")
    return found


def _ends_earlier(old: Terms, new: Terms) -> bool:
    if old.notice_until is None:
        return False
    return new.notice_until is None or new.notice_until < old.notice_until


def _more_categories(old: Terms, new: Terms) -> str:
    """Return the categories that only the new terms have inside; empty where there are none."""
    if old.categories is None:
        return ""
    if new.categories is None:
        return "all"
    return ", ".join(sorted(set(new.categories) - set(old.categories)))


def _reaches_further_back(old: Terms, new: Terms) -> bool:
    if old.collected_from is None:
        return False
    return new.collected_from is None or new.collected_from < old.collected_from


def _kept(old: Terms | None, new: Terms) -> tuple[str, ...]:
    found = []
    if old is not None and old.purge_on_opt_out and not new.purge_on_opt_out:
        found.append("an opt-out no longer has stored data purged")
    within = PURGE_WITHIN_DEFAULT
    if old is not None:
        within = old.purge_within
    if new.purge_within > within:
        found.append(f"a purge may take {_days(new.purge_within)} days instead of {_days(within)}")
    return tuple(found)


def _days(time: Micros) -> str:
    return f"{time / DAY_MICROS:g}"
