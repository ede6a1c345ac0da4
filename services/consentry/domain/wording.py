"""Reasons and facts of a decision in English that a privacy officer can read.

Names of jurisdictions come from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, time, timedelta
from typing import Final

from consentry.domain.controls import (
    PURGE_WITHIN_DEFAULT,
    Minors,
    PauseBasis,
    PauseImposed,
    PauseLifted,
    PolicyPublished,
    Regime,
    Terms,
)
from consentry.domain.decisions import Ground, Limit, Row
from consentry.domain.events import AGE_BANDS, RELOCATION_FACTS, Fact, FactKind
from consentry.domain.jurisdictions import ANYWHERE, Jurisdictions
from consentry.domain.values import AgeBand, Micros, Reason

NameOf = Callable[[str], str | None]
"""The English name of a jurisdiction's code, or None; wire/jurisdictions.py has one."""

_NAMED_MAX: Final = 12
"""Jurisdictions named in one sentence at most."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_AGES: Final = {AgeBand.ADULT: "of age", AgeBand.MINOR: "a minor", AgeBand.UNKNOWN: "age not known"}
_REGIMES: Final = {
    Regime.DEFAULT_ON: "default on",
    Regime.OPT_IN: "opt-in",
    Regime.NOT_OFFERED: "not offered",
}
_MINORS: Final = {
    Minors.EXCLUDE: "no minors",
    Minors.EXCLUDE_UNLESS_ADULT: "only members known to be of age",
}
_BASES: Final = {"LEGITIMATE_INTEREST": "legitimate interest", "CONSENT": "consent"}
_SAYS: Final[Mapping[Reason, tuple[str, str]]] = {
    Reason.DEFAULT_ON: ("allows the use", "would have allowed the use"),
    Reason.OPTED_IN: (
        "allows the use, as the member opted in",
        "would have allowed the use, as the member opted in",
    ),
    Reason.OPT_IN_REQUIRED: ("asks for an opt-in", "would have asked for an opt-in"),
    Reason.NOT_OFFERED: ("does not offer the use", "would not have offered the use"),
    Reason.NOTICE_OPEN: ("is under notice", "would have been under notice"),
    Reason.OUTSIDE_TERMS: ("does not cover the use", "would not have covered the use"),
}
"""What a policy does by the reason it stands for, and what it would have done."""


def date_text(instant: Micros) -> str:
    """`11 Oct 2024`: a date in a decision's sentences, with the time if not midnight, UTC.

    The time is to the second.
    """
    moment = moment_of(instant)
    day = f"{moment.day} {moment:%b %Y}"
    if moment.time() == time():
        return day
    if moment.second or moment.microsecond:
        return f"{day} {moment:%H:%M:%S}Z"
    return f"{day} {moment:%H:%M}Z"


def moment_of(instant: Micros) -> datetime:
    """The aware UTC datetime of a time in microseconds, for a decision's sentences."""
    return _EPOCH + timedelta(microseconds=instant)


def iso_text(instant: Micros) -> str:
    """A time of a decision in ISO 8601, UTC, to the microsecond.

    One that no calendar has is the nearest that it has.
    """
    try:
        return moment_of(instant).isoformat().replace("+00:00", "Z")
    except OverflowError:
        if instant > 0:
            return "9999-12-31T23:59:59Z"
        return "0001-01-01T00:00:00Z"


def place_text(code: str, name_of: NameOf | None = None) -> str:
    """`Hong Kong (HK)`: a jurisdiction in a decision's sentences; nameless, the code alone."""
    name = None
    if name_of is not None:
        name = name_of(code)
    if name is None:
        return code
    return f"{name} ({code})"


def terms_text(terms: Terms) -> str:
    """`default on, legitimate interest`: the terms of a policy in a decision's sentences."""
    regime = _REGIMES.get(terms.regime, "a regime that is not understood")
    basis = _BASES.get(terms.basis)
    if basis is None:
        return regime
    return f"{regime}, {basis}"


def terms_summary(terms: Terms | None) -> str:
    """All that a policy's terms say, in words, but for place and purpose: regime, limits."""
    if terms is None:
        return "no terms"
    said = [terms_text(terms)]
    if terms.notice_until is not None:
        said.append(f"notice until {date_text(terms.notice_until)}")
    if terms.categories is not None:
        said.append(f"categories {', '.join(terms.categories)}")
    if terms.collected_from is not None:
        said.append(f"collected from {date_text(terms.collected_from)} on")
    if terms.minors is not Minors.ALLOW:
        said.append(_MINORS.get(terms.minors, "only members known to be of age"))
    if terms.purge_on_opt_out:
        said.append("purge on opt-out")
    if terms.purge_within != PURGE_WITHIN_DEFAULT:
        said.append(f"purge within {duration_text(terms.purge_within)}")
    return "; ".join(said)


def duration_text(length: Micros) -> str:
    """`30 days`, `12 hours` or `90 minutes`: a time span in the sentences about rules.

    The largest unit that says it exactly, rounded to minutes.
    """
    minutes = round(length / 60_000_000)
    for unit, size in (("day", 1440), ("hour", 60), ("minute", 1)):
        if minutes % size == 0:
            return f"{minutes // size} {unit}{'' if minutes == size else 's'}"
    raise AssertionError("every whole number is a multiple of 1")


class Phrasing:
    """Says grounds and facts of a decision in English.

    `row` is what was asked about, as far as that is known.
    """

    def __init__(self, name_of: NameOf | None = None, row: Row | None = None) -> None:
        self._name_of = name_of
        self._row = row or Row()

    def place(self, code: str | None) -> str:
        """A jurisdiction in words."""
        if code is None:
            return "the row"
        return place_text(code, self._name_of)

    def sentence(self, ground: Ground, *, would: bool = False) -> str:
        """Return a decision's ground as a clause.

        With `would`, as if no earlier ground had decided.
        """
        fact = ground.fact
        place = self.place(ground.jurisdiction)
        if isinstance(fact, str):
            if ground.reason is not Reason.NO_TERMS:
                return fact
            text = f"{fact} in {place}"
            if would:
                text += ", so it would have been excluded"
            return text
        if isinstance(fact, PauseImposed):
            return f"{place} is paused{self._pause(fact, ground.jurisdiction)}"
        if isinstance(fact, PauseLifted):
            return (
                f"the lift of {fact.pause} on {date_text(fact.recorded_at)} voided the earlier "
                "opt-in"
            )
        if isinstance(fact, PolicyPublished):
            return self._policy(ground, fact, place, would=would)
        return f"the member {self.fact(fact)}"

    def fact(self, fact: Fact) -> str:
        """Return a fact as the words that follow `the member`."""
        dates = date_text(fact.effective_at)
        recorded = date_text(fact.recorded_at)
        if recorded != dates:
            dates += f", recorded {recorded}"
        if fact.kind in RELOCATION_FACTS:
            return f"lived in {self.place(fact.name)}, {_AGES[AGE_BANDS[fact.kind]]}, from {dates}"
        said = {
            FactKind.OPTED_OUT: f"opted out of {fact.name}",
            FactKind.OPTED_IN: f"opted in to {fact.name}",
            FactKind.CHOICE_UNKNOWN: f"made a choice for {fact.name} that is not understood",
            FactKind.ERASED: "was erased",
            FactKind.RELEASED: "was released from a quarantine",
        }
        text = said.get(fact.kind, "is quarantined: an event of theirs was quarantined")
        return f"{text} on {dates}"

    def _pause(self, pause: PauseImposed, asked: str | None) -> str:
        """Since when, by whom, which, and when that was recorded."""
        recorded = f"recorded {date_text(pause.recorded_at)}"
        if pause.effective_at <= 0:
            # Only a control that could not be read pauses from the beginning of time
            # (wire/controls.py).
            return (
                f" until an operator lifts {pause.pause}, a control that could not be read, "
                f"{recorded}"
            )
        since = f" since {date_text(pause.effective_at)}"
        by = []
        if pause.authority:
            by.append(pause.authority)
        if pause.basis is not PauseBasis.UNKNOWN:
            by.append(pause.basis.lower())
        if by:
            since += f" by {' '.join(by)}"
        whole = self._whole(asked, pause.scope.jurisdictions)
        return f"{since} ({pause.pause} v{pause.version}{whole}), {recorded}"

    def _whole(self, asked: str | None, scope: tuple[str, ...]) -> str:
        """Return the words for a scope that does not name the jurisdiction itself."""
        if asked is None or asked in scope:
            return ""
        if ANYWHERE in scope:
            return ", everywhere"
        country = asked.split("-", 1)[0]
        if country in scope:
            return f", for {self.place(country)}"
        return f", for {', '.join(scope)}"

    def _policy(self, ground: Ground, policy: PolicyPublished, place: str, *, would: bool) -> str:
        said = f"policy {policy.version} for {place} {_SAYS[ground.reason][would]}"
        terms = ground.terms
        if terms is None or terms.regime is Regime.NOT_OFFERED:
            return said
        if ground.reason is Reason.NOTICE_OPEN and terms.notice_until is not None:
            said += (
                f" until {date_text(terms.notice_until)}, and until then uses only members "
                "who opted in"
            )
        if ground.limit is not None:
            return f"{said}: {self._limit(ground.limit, terms)}"
        return f"{said} ({terms_text(terms)})"

    def _limit(self, limit: Limit, terms: Terms) -> str:
        """Return the condition that failed, and by what."""
        row = self._row
        start = date_text(terms.collected_from or Micros(0))
        if limit is Limit.MINOR:
            return "the member is a minor"
        if limit is Limit.AGE_NOT_KNOWN:
            return "the member is not known to be of age"
        if limit is Limit.CATEGORY:
            category = "the row's category"
            if row.category:
                category = f"the category {row.category}"
            return f"{category} is not among {', '.join(terms.categories or ())}"
        if limit is Limit.COLLECTED_UNKNOWN:
            return (
                f"nobody knows when the row was collected, and only data from {start} on is covered"
            )
        when = ""
        if row.collected is not None:
            when = f" on {date_text(row.collected)},"
        return f"the row was collected{when} before {start}"


def named(
    codes: Iterable[str], jurisdictions: Jurisdictions, *, at: Micros, most: int | None = _NAMED_MAX
) -> str:
    """Return jurisdictions of a decision or control in words: groups by name, or `everywhere`.

    As a person would write them.

    Where fewer are left out than named, those that are left out are named. A part that is a country
    too is left out where that country is named. At most `most` are named; None: all.
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
        exceptions = _listed(missing, jurisdictions, at, most)
        return ", ".join((f"everywhere but {exceptions}", *rest))
    return _listed(left, jurisdictions, at, most)


def _listed(
    codes: Iterable[str], jurisdictions: Jurisdictions, at: Micros, most: int | None
) -> str:
    left = set(codes)
    groups: list[str] = []
    for group in sorted(jurisdictions.groups):
        members = jurisdictions.expanded((group,), at=at)
        if members and members <= left:
            groups.append(group)
            left -= members
    names = [*groups, *sorted(left)]
    if most is None or len(names) <= most:
        return ", ".join(names)
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more"
