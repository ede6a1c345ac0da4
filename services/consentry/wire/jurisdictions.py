"""ISO 3166 codes that may come over the wire, from pycountry, and the EEA as dated data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Final

import pycountry

from consentry.domain.jurisdictions import Jurisdictions, Membership
from consentry.domain.values import Micros


def _day(text: str) -> Micros:
    return Micros(int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1_000_000)


_EEA_SINCE: Final = {
    # EEA Agreement of 2 May 1992 in force, and its enlargements (OJ L 1, 3.1.1994; L 130,
    # 29.4.2004; L 221, 25.8.2007; L 170, 11.6.2014). Liechtenstein from 1 May 1995.
    "1994-01-01": "AT BE DE DK ES FI FR GB GR IE IS IT LU NL NO PT SE",
    "1995-05-01": "LI",
    "2004-05-01": "CY CZ EE HU LT LV MT PL SI SK",
    "2007-08-01": "BG RO",
    "2014-04-12": "HR",
}
_EEA_TERRITORIES: Final = {
    # Parts of members that ISO 3166-1 lists by themselves, and in which Union law holds: Aland (Act
    # of Accession of 1994, Protocol 2) and the outermost regions of France (TFEU 349 and 355(1)).
    "1994-01-01": "GF GP MF MQ RE",
    "1995-01-01": "AX",
    "2014-01-01": "YT",
}
_TWINS: Final = {
    # ISO 3166-2: subdivisions that ISO 3166-1 lists as countries too.
    "CN": "HK MO TW",
    "FR": "BL MF NC PF PM TF WF 971=GP 972=MQ 973=GF 974=RE 976=YT",
    "FI": "01=AX",
    "NL": "AW CW SX BQ1=BQ BQ2=BQ BQ3=BQ",
    "NO": "21=SJ 22=SJ",
    "US": "AS GU MP PR UM VI",
}
_EEA_UNTIL: Final = {
    # The United Kingdom stayed in until the transition period of its Withdrawal Agreement ended.
    "GB": "2021-01-01",
}


@cache
def iso_jurisdictions() -> Jurisdictions:
    """Return all ISO 3166-1 alpha-2 and 3166-2 codes of pycountry, and the group EEA."""
    countries = frozenset(country.alpha_2 for country in pycountry.countries)
    subdivisions = frozenset(subdivision.code for subdivision in pycountry.subdivisions)
    return Jurisdictions(
        codes=countries | subdivisions, groups={"EEA": tuple(_eea())}, twins=_twins()
    )


def _eea() -> Iterator[Membership]:
    for since, members in (*_EEA_SINCE.items(), *_EEA_TERRITORIES.items()):
        for country in members.split():
            until = _EEA_UNTIL.get(country, "9999-01-01")
            yield Membership(country=country, since=_day(since), until=_day(until))


def _twins() -> dict[str, str]:
    """Return by subdivision code the country code of the same place."""
    twins: dict[str, str] = {}
    for country, entries in _TWINS.items():
        for entry in entries.split():
            part, _, code = entry.partition("=")
            twins[f"{country}-{part}"] = code or part
    return twins


def name_of(code: str) -> str | None:
    """Return the English name in pycountry of a country, or of a subdivision and its country.

    None if it has none.
    """
    return _names().get(code)


@cache
def _names() -> Mapping[str, str]:
    names: dict[str, str] = {}
    for country in pycountry.countries:
        names[country.alpha_2] = str(getattr(country, "common_name", country.name))
    for subdivision in pycountry.subdivisions:
        names[subdivision.code] = f"{subdivision.name}, {names[subdivision.country_code]}"
    return names
