"""The rules once more: written from their text, declaratively, over plain dictionaries, and sharing no code.

A timeline is a list of entries in log order, each with `kind`, `effective` and `recorded`. Two programs that were
written apart are rarely wrong in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Entry = Mapping[str, Any]

ORDER = (
    *("ERASED", "HELD", "JURISDICTION_UNKNOWN", "PAUSED", "OPTED_OUT", "NO_TERMS", "NOT_OFFERED", "OUTSIDE_TERMS"),
    *("OPTED_IN", "NOTICE_OPEN", "DEFAULT_ON", "OPT_IN_REQUIRED"),
)
ALLOWING = {"OPTED_IN", "DEFAULT_ON"}
COUNTRY = {"HK": "HK", "US": "US", "US-CA": "US", "DE": "DE", "GB": "GB", "GB-SCT": "GB", "CH": "CH"}


def covers(scope: Sequence[str], code: str, at: int, british_exit: int) -> bool:
    """Whether a list of codes, groups and `*` holds a place at that time."""
    in_group = COUNTRY[code] == "DE" or (COUNTRY[code] == "GB" and at < british_exit)
    return "*" in scope or code in scope or COUNTRY[code] in scope or ("EEA" in scope and in_group)


def own_entries(timeline: Sequence[Entry]) -> list[tuple[int, Entry]]:
    """The member's distinct entries with their numbers, up to the erasure: it latches."""
    distinct: dict[Any, Entry] = {}
    for entry in timeline:
        if entry["kind"] in {"chose", "moved", "erased", "unreadable", "released"}:
            distinct.setdefault(entry["id"], entry)
    numbered = list(enumerate(distinct.values(), start=1))
    ends = [number for number, entry in numbered if entry["kind"] == "erased"]
    return numbered[: ends[0]] if ends else numbered


def choice_of(counting: Sequence[tuple[int, Entry]], purpose: str) -> Entry | str | None:
    """`out`, the standing opt-in, or None. Rule 2, read backwards from the last opt-out."""
    said = [(number, entry) for number, entry in counting if entry.get("purpose") == purpose]
    outs = [place for place, (_, entry) in enumerate(said) if entry["choice"] == "OPT_OUT"]
    rest = said
    if outs:
        last = outs[-1]
        cancelling = [
            place
            for place in range(last + 1, len(said))
            if said[place][1]["choice"] == "OPT_IN"
            and said[place][1]["observed"] is not None
            and said[place][1]["observed"] >= said[last][0]
        ]
        if not cancelling:
            return "out"
        rest = said[cancelling[0] :]
    return rest[-1][1] if rest and rest[-1][1]["choice"] == "OPT_IN" else None


def answer(
    timeline: Sequence[Entry],
    *,
    purpose: str,
    at: int,
    known_at: int,
    row: Mapping[str, Any] | None,
    british_exit: int,
) -> tuple[bool, str]:
    """Whether the use is allowed, and the reason."""
    # A repeated entry changes nothing, wherever it comes again.
    timeline = list({entry["id"]: entry for entry in timeline}.values())

    def counts(entry: Entry) -> bool:
        return bool(entry["effective"] <= at and entry["recorded"] <= known_at)

    counting = [(number, entry) for number, entry in own_entries(timeline) if counts(entry)]
    kinds = [entry["kind"] for _, entry in counting]
    if "erased" in kinds:
        return False, "ERASED"
    if [kind for kind in kinds if kind in {"unreadable", "released"}][-1:] == ["unreadable"]:
        return False, "HELD"

    homes = [entry for _, entry in counting if entry["kind"] == "moved"]
    places = {homes[-1]["jurisdiction"]} if homes else set()
    if row and row["jurisdiction"] is not None:
        places.add(row["jurisdiction"])
    if not places:
        return False, "JURISDICTION_UNKNOWN"
    band = homes[-1]["age_band"] if homes else "UNKNOWN"
    choice = choice_of(counting, purpose)
    reasons = [_at_place(timeline, place, choice, band, purpose, at, row, british_exit, counts) for place in places]
    refusing = [reason for reason in reasons if reason not in ALLOWING]
    return not refusing, min(refusing or reasons, key=ORDER.index)


def _at_place(
    timeline: Sequence[Entry],
    place: str,
    choice: Entry | str | None,
    band: str,
    purpose: str,
    at: int,
    row: Mapping[str, Any] | None,
    british_exit: int,
    counts: Any,
) -> str:
    if place not in COUNTRY:
        return "JURISDICTION_UNKNOWN"
    category = row["category"] if row else None
    first: dict[Any, Entry] = {}
    for entry in timeline:
        if entry["kind"] == "paused":
            first.setdefault((entry["pause"], entry["version"]), entry)
    imposed = [entry for entry in first.values() if counts(entry)]
    lifts = [entry for entry in timeline if entry["kind"] == "lifted" and counts(entry)]

    def names_the_place(entry: Entry) -> bool:
        is_known = entry["jurisdictions"] and all(one in {*COUNTRY, "EEA", "*"} for one in entry["jurisdictions"])
        if not is_known:
            return True
        return covers(entry["jurisdictions"], place, at, british_exit) and purpose in (entry["purposes"] or [purpose])

    def has_category(entry: Entry) -> bool:
        understood = entry["jurisdictions"] and all(one in {*COUNTRY, "EEA", "*"} for one in entry["jurisdictions"])
        return not understood or not entry["categories"] or category is None or category in entry["categories"]

    in_force = [
        entry
        for entry in imposed
        if not any(lift["pause"] == entry["pause"] and lift["version"] >= entry["version"] for lift in lifts)
    ]
    if any(names_the_place(entry) and has_category(entry) for entry in in_force):
        return "PAUSED"
    if choice == "out":
        return "OPTED_OUT"

    policies = sorted(
        (entry["effective"], number, entry["terms"])
        for number, entry in enumerate(timeline)
        if entry["kind"] == "policy" and counts(entry)
    )
    matching = [
        one
        for _, _, entries in reversed(policies)
        for one in entries
        if one["purpose"] == purpose and covers(one["jurisdictions"], place, at, british_exit)
    ]
    if not matching:
        return "NO_TERMS"
    found = matching[0]
    voided = choice is not None and any(
        lift["opt_ins"] == "VOID"
        and isinstance(choice, Mapping)
        and choice["recorded"] <= lift["recorded"]
        and any(
            entry["pause"] == lift["pause"] and entry["version"] <= lift["version"] and names_the_place(entry)
            for entry in imposed
        )
        for lift in lifts
    )
    outside = [
        found["minors"] == "EXCLUDE" and band == "MINOR",
        found["minors"] == "EXCLUDE_UNLESS_ADULT" and band != "ADULT",
        category is not None and found["categories"] is not None and category not in found["categories"],
        row is not None
        and found["collected_from"] is not None
        and (row["collected"] is None or row["collected"] < found["collected_from"]),
    ]
    ladder = [
        ("NOT_OFFERED", found["regime"] == "NOT_OFFERED"),
        ("OUTSIDE_TERMS", any(outside)),
        ("OPTED_IN", choice is not None and not voided),
        ("NOTICE_OPEN", found["notice_until"] is not None and at < found["notice_until"]),
        ("DEFAULT_ON", found["regime"] == "DEFAULT_ON"),
        ("OPT_IN_REQUIRED", True),
    ]
    return next(name for name, holds in ladder if holds)
