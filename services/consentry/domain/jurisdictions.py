"""Jurisdictions as the rules read them: the codes that exist, the groups that hold each.

A value: the codes come from a library (wire).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from consentry.domain.values import Micros

ANYWHERE: Final = "*"

_UNBOUNDED: Final = Micros(2**62)


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """A country's time in a group such as the EEA: from `since` until `until` (exclusive).

    In microseconds since 1970-01-01 UTC.
    """

    country: str
    since: Micros = Micros(-(2**62))
    until: Micros = _UNBOUNDED


@dataclass(frozen=True)
class Jurisdictions:
    """The codes of jurisdictions that the rules know: countries, subdivisions, dated groups.

    They are ISO 3166-1 alpha-2 countries and ISO 3166-2 subdivisions.

    ISO 3166-1 alpha-2 countries, ISO 3166-2 subdivisions, and dated groups.

    `twins` are subdivisions that are listed as countries too, such as CN-HK, with the country's
    code.
    """

    codes: frozenset[str]
    groups: Mapping[str, tuple[Membership, ...]] = field(default_factory=dict)
    twins: Mapping[str, str] = field(default_factory=dict)

    def is_code(self, code: str) -> bool:
        """Return True if `code` is a jurisdiction that a member or a row can be in."""
        return code in self.codes

    def is_scope(self, entry: str) -> bool:
        """Return True if `entry` can stand in the scope of a pause or of terms."""
        return entry == ANYWHERE or entry in self.codes or entry in self.groups

    def holders(self, code: str, *, at: Micros) -> frozenset[str]:
        """Every scope entry that holds `code` at a time: itself, country, groups, anywhere.

        A subdivision that has a country's code of its own is held by what holds that country as
        well.
        """
        countries = {code.split("-", 1)[0], self.twins.get(code, code.split("-", 1)[0])}
        groups = (
            name
            for country in countries
            for name, member in self._memberships.get(country, ())
            if member.since <= at < member.until
        )
        return frozenset((ANYWHERE, code, *countries, *groups))

    @cached_property
    def _memberships(self) -> Mapping[str, tuple[tuple[str, Membership], ...]]:
        """By country, the groups it ever belongs to."""
        found: dict[str, tuple[tuple[str, Membership], ...]] = {}
        for name, members in self.groups.items():
            for member in members:
                found[member.country] = (*found.get(member.country, ()), (name, member))
        return found

    @cached_property
    def changes(self) -> frozenset[Micros]:
        """Every time at which some country joins or leaves a group such as the EEA."""
        times: set[Micros] = set()
        for members in self.groups.values():
            for member in members:
                times.add(member.since)
                times.add(member.until)
        return frozenset(times)

    def unknown(self, scope: Iterable[str]) -> tuple[str, ...]:
        """The entries of `scope` that are no jurisdiction, no group and not anywhere."""
        return tuple(entry for entry in scope if not self.is_scope(entry))

    def expanded(self, scope: Iterable[str], *, at: Micros) -> frozenset[str]:
        """The codes that a scope stands for at that time.

        Groups become their countries, anywhere becomes every country.
        """
        codes: set[str] = set()
        for entry in scope:
            if entry == ANYWHERE:
                codes.update(code for code in self.codes if "-" not in code)
            elif entry in self.groups:
                codes.update(
                    member.country
                    for member in self.groups[entry]
                    if member.since <= at < member.until
                )
            else:
                codes.add(entry)
        return frozenset(codes)
