"""The rules once more: from the text of the scenario format alone, over plain documents, and
sharing no code.

Where the product folds event after event, this asks of a whole timeline what holds in it. Two
programs that were written apart, in two manners, are rarely wrong in the same way. Slow and short,
on purpose.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final, NamedTuple

import pycountry

Document = Mapping[str, Any]

ORDER: Final = (
    *(
        "ERASED",
        "QUARANTINED",
        "JURISDICTION_UNKNOWN",
        "PAUSED",
        "OPTED_OUT",
        "NO_TERMS",
        "NOT_OFFERED",
        "OUTSIDE_TERMS",
    ),
    *("OPTED_IN", "NOTICE_OPEN", "DEFAULT_ON", "OPT_IN_REQUIRED"),
)
ALLOWING: Final = frozenset({"OPTED_IN", "DEFAULT_ON"})
# The Union of 27 and Iceland, Liechtenstein, Norway: so it is since 2021, and no document here asks
# about earlier.
EEA: Final = frozenset(
    [
        *("AT", "BE", "BG", "CY", "CZ", "DE", "DK", "EE", "ES", "FI", "FR", "GR", "HR", "HU", "IE"),
        *("IS", "IT", "LI", "LT", "LU", "LV", "MT", "NL", "NO", "PL", "PT", "RO", "SE", "SI", "SK"),
    ]
)
COUNTRIES: Final = frozenset(country.alpha_2 for country in pycountry.countries)
CODES: Final = COUNTRIES | {subdivision.code for subdivision in pycountry.subdivisions}


class Entry(NamedTuple):
    """One entry of a timeline: its number from 1, its two times in microseconds, and what it
    says.
    """

    number: int
    kind: str
    recorded: int
    effective: int
    says: Mapping[str, Any]


class Question(NamedTuple):
    """One expectation without what is expected."""

    member: str
    purpose: str
    at: int
    known_at: int
    row: Mapping[str, Any] | None


class Scope(NamedTuple):
    """What a pause covers; None is everything."""

    jurisdictions: tuple[str, ...]
    purposes: Sequence[str] | None
    categories: Sequence[str] | None


@lru_cache(maxsize=1 << 16)
def instant(text: str) -> int:
    """An ISO date or date and time, in microseconds since 1970; UTC where no zone is given."""
    moment = datetime.fromisoformat(text)
    since_1970 = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - datetime(
        1970, 1, 1, tzinfo=UTC
    )
    return since_1970 // timedelta(microseconds=1)


@lru_cache
def duration(text: str) -> int:
    """A duration of weeks, days and hours, such as P30D or PT12H, in microseconds."""
    found = re.fullmatch(r"P(?:(?P<weeks>\d+)W)?(?:(?P<days>\d+)D)?(?:T(?P<hours>\d+)H)?", text)
    assert found, text
    return timedelta(
        **{unit: int(number or 0) for unit, number in found.groupdict().items()}
    ) // timedelta(microseconds=1)


def answers(document: Document) -> list[tuple[bool, str]]:
    """For each expectation of the document whether use is allowed, and why."""
    log = timeline(document)
    return [answer(log, question(document, expectation)) for expectation in document["expect"]]


def orders(document: Document) -> list[dict[str, Any]]:
    """The purge orders that are open after the timeline; `due` in microseconds."""
    log = timeline(document)
    return [*erasure_orders(log), *opt_out_orders(log), *pause_orders(log)]


def timeline(document: Document) -> list[Entry]:
    """The entries that may change anything: without those of a member whose erasure had taken
    effect before.
    """
    log = [entry(number, item) for number, item in enumerate(document["timeline"], start=1)]
    erasures = of_kind(log, "member_erased")
    return [
        one
        for one in log
        if not any(
            erasure.number < one.number
            and erasure.effective <= one.recorded
            and erasure.says["member"] == one.says.get("member")
            for erasure in erasures
        )
    ]


def entry(number: int, item: Mapping[str, Any]) -> Entry:
    """One item of a timeline, its absent effective date filled in."""
    (kind,) = (name for name in item if name != "recorded")
    says = item[kind]
    return Entry(
        number,
        kind,
        instant(item["recorded"]),
        instant(says.get("effective") or item["recorded"]),
        says,
    )


def question(document: Document, expectation: Mapping[str, Any]) -> Question:
    """One expectation, its absent times filled in: the end of the timeline."""
    end = document["timeline"][-1]["recorded"]
    at, known_at = expectation.get("at") or end, expectation.get("known_at") or end
    row = expectation.get("row")
    return Question(
        expectation["member"], expectation["purpose"], instant(at), instant(known_at), row
    )


def answer(log: Iterable[Entry], asked: Question) -> tuple[bool, str]:
    """Both places must allow; of several refusals the first of the list is told."""
    seen = [one for one in log if one.effective <= asked.at and one.recorded <= asked.known_at]
    home = last(of_member(seen, asked.member, "member_relocated"))
    both = {home.says["jurisdiction"] if home else None, (asked.row or {}).get("jurisdiction")} - {
        None
    }
    told = [reason(seen, asked, place, home) for place in both or {None}]
    decisive = min([one for one in told if one not in ALLOWING] or told, key=ORDER.index)
    return decisive in ALLOWING, decisive


def reason(seen: Sequence[Entry], asked: Question, place: str | None, home: Entry | None) -> str:
    """The first reason of the list that applies in one place."""
    member, purpose = asked.member, asked.purpose
    chosen = choice(of_member(seen, member, "consent_changed"), purpose)
    found = terms(seen, place, purpose)
    regime = found["regime"] if found else None
    notice = found.get("notice_until") if found else None
    applies = {
        "ERASED": bool(of_member(seen, member, "member_erased")),
        "QUARANTINED": held(seen, member),
        "JURISDICTION_UNKNOWN": place not in CODES,
        "PAUSED": any(
            covers(scope_of(pause), place, purpose, asked.row) for pause in in_force(seen)
        ),
        "OPTED_OUT": chosen is not None and chosen.says["choice"] == "OPT_OUT",
        "NO_TERMS": found is None,
        "NOT_OFFERED": regime == "NOT_OFFERED",
        "OUTSIDE_TERMS": found is not None and outside(found, home, asked.row),
        "OPTED_IN": chosen is not None and not voided(seen, chosen, place, purpose),
        "NOTICE_OPEN": notice is not None and asked.at < instant(notice),
        "DEFAULT_ON": regime == "DEFAULT_ON",
        "OPT_IN_REQUIRED": True,
    }
    return next(name for name in ORDER if applies[name])


def held(seen: Iterable[Entry], member: str) -> bool:
    """Whether there is an unreadable event without a release after it by somebody who had seen
    it.
    """
    releases = of_member(seen, member, "released")
    return any(
        not any(
            release.number > unreadable.number
            and (
                release.says.get("observed") is None
                or release.says["observed"] >= unreadable.number
            )
            for release in releases
        )
        for unreadable in of_member(seen, member, "unreadable")
    )


def choice(choices: Iterable[Entry], purpose: str) -> Entry | None:
    """The opt-out or opt-in of a purpose that stands at the end, if any."""
    mine = [one for one in choices if one.says["purpose"] == purpose]
    opt_out = last([one for one in mine if one.says["choice"] == "OPT_OUT"])
    if opt_out and not any(
        one.says["choice"] == "OPT_IN"
        and one.number > opt_out.number
        and (one.says.get("observed") or 0) >= opt_out.number
        for one in mine
    ):
        return opt_out
    # Since an opt-out was cancelled, or never was, nothing but the last word matters.
    latest = last(mine)
    return latest if latest and latest.says["choice"] == "OPT_IN" else None


def in_force(seen: Sequence[Entry]) -> list[Entry]:
    """The impositions that no lift reaches, whichever of the two came first."""
    lifts = of_kind(seen, "pause_lifted")
    return [
        pause
        for pause in impositions(seen)
        if not any(
            lift.says["pause"] == pause.says["pause"]
            and lift.says["version"] >= pause.says["version"]
            for lift in lifts
        )
    ]


def impositions(seen: Iterable[Entry]) -> list[Entry]:
    """The first imposition of each pause and version."""
    first: dict[tuple[str, int], Entry] = {}
    return [
        pause
        for pause in of_kind(seen, "pause_imposed")
        if first.setdefault((pause.says["pause"], pause.says["version"]), pause) is pause
    ]


def voided(seen: Sequence[Entry], opt_in: Entry, place: str | None, purpose: str) -> bool:
    """Whether a lift that voids opt-ins here was recorded at or after this one."""
    return any(
        lift.says.get("opt_ins") != "KEEP"
        and opt_in.recorded <= lift.recorded
        and any(
            pause.says["pause"] == lift.says["pause"]
            and pause.says["version"] <= lift.says["version"]
            and covers(scope_of(pause)._replace(categories=None), place, purpose, None)
            for pause in impositions(seen)
        )
        for lift in of_kind(seen, "pause_lifted")
    )


def scope_of(pause: Entry) -> Scope:
    """What an imposition covers; all there is if it names a place that does not exist, or none."""
    named = tuple(pause.says["jurisdictions"])
    if not named or not CODES.issuperset(set(named) - {"*", "EEA"}):
        return Scope(("*",), None, None)
    return Scope(named, pause.says.get("purposes"), pause.says.get("categories"))


def covers(scope: Scope, place: str | None, purpose: str, row: Mapping[str, Any] | None) -> bool:
    """Whether a scope holds this place, purpose and row; a row that tells no category is in every
    category.
    """
    category = (row or {}).get("category")
    return (
        inside(place, scope.jurisdictions)
        and (scope.purposes is None or purpose in scope.purposes)
        and (scope.categories is None or category is None or category in scope.categories)
    )


@lru_cache(maxsize=1 << 16)
def inside(place: str | None, named: tuple[str, ...]) -> bool:
    """Whether a place is one of those named, or in one of them."""
    country = (place or "").split("-")[0]
    return not {place, country, "EEA" if country in EEA else country, "*"}.isdisjoint(named)


def terms(seen: Iterable[Entry], place: str | None, purpose: str) -> Mapping[str, Any] | None:
    """The terms in force: of each policy the first entry that matches, of these the latest."""
    matching = [
        (policy.effective, policy.number, own[0])
        for policy in of_kind(seen, "policy_published")
        if (own := [one for one in policy.says["terms"] if fits(one, place, purpose)])
    ]
    return max(matching, key=lambda one: one[:2])[2] if matching else None


def fits(one: Mapping[str, Any], place: str | None, purpose: str) -> bool:
    """Whether an entry of a policy speaks of this place and purpose."""
    return bool(one["purpose"] == purpose and inside(place, tuple(one["jurisdictions"])))


def outside(found: Mapping[str, Any], home: Entry | None, row: Mapping[str, Any] | None) -> bool:
    """Whether the member's age, or the row's category or date, is outside these terms."""
    band = home.says.get("age_band") if home else None
    category, collected = (row or {}).get("category"), (row or {}).get("collected")
    categories, since = found.get("categories"), found.get("collected_from")
    return (
        (found.get("minors") == "EXCLUDE" and band == "MINOR")
        or (found.get("minors") == "EXCLUDE_UNLESS_ADULT" and band != "ADULT")
        or (category is not None and categories is not None and category not in categories)
        or (
            since is not None
            and row is not None
            and (collected is None or instant(collected) < instant(since))
        )
    )


def erasure_orders(log: Sequence[Entry]) -> list[dict[str, Any]]:
    """One for each erasure, due in the shortest time any purpose's terms give where the member then
    lived.
    """
    return [
        {
            "because": "ERASURE",
            "member": erasure.says["member"],
            "due": erasure.recorded
            + shortest(log, erasure.recorded, home_before(log, erasure), purposes(log)),
        }
        for erasure in of_kind(log, "member_erased")
    ]


def opt_out_orders(log: Sequence[Entry]) -> list[dict[str, Any]]:
    """One for each opt-out where the terms of its purpose ask for it."""
    return [
        {
            "because": "OPT_OUT",
            "member": opt_out.says["member"],
            "due": opt_out.recorded
            + shortest(log, opt_out.recorded, [place], [opt_out.says["purpose"]]),
        }
        for opt_out in of_kind(log, "consent_changed")
        if opt_out.says["choice"] == "OPT_OUT"
        for place in home_before(log, opt_out)
        if (found := terms(known(log, opt_out.recorded), place, opt_out.says["purpose"]))
        and (found.get("purge") or {}).get("on_opt_out")
    ]


def pause_orders(log: Sequence[Entry]) -> list[dict[str, Any]]:
    """One for each imposition that reaches back, due in the shortest time of all that it covers."""
    return [
        {
            "because": "PAUSE",
            "pause": pause.says["pause"],
            "jurisdictions": list(scope.jurisdictions),
            "due": pause.recorded
            + shortest(
                log,
                pause.recorded,
                places(log, scope.jurisdictions),
                purposes(log) if scope.purposes is None else scope.purposes,
            ),
        }
        for pause in impositions(log)
        if pause.says.get("reach") == "PRIOR_AND_FUTURE"
        for scope in [scope_of(pause)]
    ]


def shortest(log: Iterable[Entry], moment: int, where: Iterable[str], what: Iterable[str]) -> int:
    """The shortest time to purge that terms in force give for these places and purposes, or thirty
    days.
    """
    seen, what = known(log, moment), list(what)
    found = (terms(seen, place, purpose) for place in where for purpose in what)
    times = ((one.get("purge") or {}).get("within") or "P30D" for one in found if one)
    return min(map(duration, times), default=duration("P30D"))


def known(log: Iterable[Entry], moment: int) -> list[Entry]:
    """What counts for a question of this moment by what was known then."""
    return [one for one in log if one.effective <= moment and one.recorded <= moment]


def home_before(log: Iterable[Entry], event: Entry) -> list[str]:
    """Where the event's member lived when it was recorded, by what the log said before it: one
    place, or none.
    """
    moves = of_member(known(log, event.recorded), event.says["member"], "member_relocated")
    return [one.says["jurisdiction"] for one in moves if one.number < event.number][-1:]


def places(log: Iterable[Entry], named: tuple[str, ...]) -> list[str]:
    """Every country in these places, and every part of one for which there may be terms of its
    own.
    """
    published = of_kind(log, "policy_published")
    told = {
        code
        for policy in published
        for one in policy.says["terms"]
        for code in one["jurisdictions"]
    }
    return [code for code in CODES & {*COUNTRIES, *told, *named} if inside(code, named)]


def purposes(log: Iterable[Entry]) -> set[str]:
    """Every purpose that a policy names."""
    return {
        one["purpose"]
        for policy in of_kind(log, "policy_published")
        for one in policy.says["terms"]
    }


def of_kind(entries: Iterable[Entry], kind: str) -> list[Entry]:
    """Those of one kind."""
    return [one for one in entries if one.kind == kind]


def of_member(entries: Iterable[Entry], member: str, kind: str) -> list[Entry]:
    """Those of one kind about one member."""
    return [one for one in entries if one.kind == kind and one.says["member"] == member]


def last(entries: Sequence[Entry]) -> Entry | None:
    """The one that stands last in the log."""
    return entries[-1] if entries else None
