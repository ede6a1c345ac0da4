"""The demo's story: synthetic members, the timeline, the members' acts, and their data sets."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ruamel.yaml import YAML

from consentry.domain.controls import Control, OptIns, PauseBasis, PauseImposed, PauseLifted, Reach
from consentry.domain.events import ConsentChanged, MemberErased, MemberRelocated
from consentry.domain.values import AgeBand, Choice, MemberId, Micros
from consentry.forms.controls import parse_policy
from consentry.forms.fields import parse_instant, parse_scope
from consentry.wire.jurisdictions import iso_jurisdictions

PURPOSE: Final = "genai_training"
SEED: Final = 20240918
DATASETS: Final = {"trainer-a": "posts", "trainer-b": "profiles", "trainer-c": "feedback"}
_DAY: Final = 86_400_000_000
_FILES: Final = 4
_ERASED_MAX: Final = 40

ChangeEvent = ConsentChanged | MemberRelocated | MemberErased


@dataclass(frozen=True, slots=True)
class Chapter:
    """A chapter of the demo's story: one event of its timeline, then what members do.

    They do it until the next event.
    """

    title: str
    control: Control
    changes: list[ChangeEvent]


class StoryMaker:
    """Makes the demo's whole story from one seed, so that each run tells the same."""

    def __init__(self, members: int) -> None:
        self._random = random.Random(SEED)
        eea = []
        for membership in iso_jurisdictions().groups["EEA"]:
            if membership.country != "GB":
                eea.append(membership.country)
        self._places = ["US", "GB", "CA", "HK", "CH", *eea]
        self._weights = [30, 15, 10, 15, 5, *([25 / len(eea)] * len(eea))]
        self.members = [MemberId(f"demo:{number:07d}") for number in range(members)]
        homes = self._random.choices(self._places, self._weights, k=members)
        self.homes = dict(zip(self.members, homes, strict=True))
        self._versions: dict[str, int] = {}
        self._erased: set[str] = set()

    def arrivals(self) -> Iterator[ChangeEvent]:
        """Give each demo member's first residence, before the first policy.

        One member in a hundred never reports one.
        """
        start = parse_instant("2024-09-01", what="start")
        for number, member in enumerate(self.members):
            if number % 100 == 99:
                continue
            band = self._random.choices(
                [AgeBand.ADULT, AgeBand.MINOR, AgeBand.UNKNOWN], [92, 3, 5]
            )[0]
            self._versions[member] = 1
            yield MemberRelocated(
                event_id=self._event_id(),
                member=member,
                jurisdiction=self.homes[member],
                effective_at=Micros(start + number),
                recorded_at=Micros(start + number),
                age_band=band,
                source="demo",
            )

    def chapters(self, changes_per_chapter: int) -> list[Chapter]:
        """Return the demo's timeline: each event, and the changes of members that follow it."""
        entries = YAML(typ="safe").load((files("consentry.cli.demo") / "timeline.yaml").read_text())
        recorded = [parse_instant(entry["recorded"], what="recorded") for entry in entries]
        ends = [*recorded[1:], Micros(recorded[-1] + 90 * _DAY)]
        chapters = []
        for entry, at, end in zip(entries, recorded, ends, strict=True):
            control = self._control(entry, at)
            changes = list(self._changes(at, end, changes_per_chapter))
            chapters.append(Chapter(entry["title"], control, changes))
        return chapters

    def _control(self, entry: dict[str, Any], recorded_at: Micros) -> Control:
        event_id = self._event_id()
        if "policy" in entry:
            return parse_policy(
                entry["policy"], event_id=event_id, recorded_at=recorded_at, source="demo"
            )
        fields = entry.get("pause") or entry["lift"]
        effective_at = recorded_at
        effective = fields.get("effective")
        if effective is not None:
            effective_at = parse_instant(effective, what="effective")
        common: dict[str, Any] = {
            "event_id": event_id,
            "pause": fields["pause"],
            "version": fields["version"],
            "effective_at": effective_at,
            "recorded_at": recorded_at,
            "source": "demo",
        }
        if "lift" in entry:
            return PauseLifted(opt_ins=OptIns(fields["opt_ins"]), **common)
        return PauseImposed(
            scope=parse_scope(fields["jurisdictions"], fields["purposes"]),
            authority=fields["authority"],
            basis=PauseBasis(fields["basis"]),
            reach=Reach(fields["reach"]),
            **common,
        )

    def _changes(self, start: Micros, end: Micros, count: int) -> Iterator[ChangeEvent]:
        step = (end - start) // (count + 1)
        for number in range(count):
            at = Micros(start + (number + 1) * step)
            yield self._change(self._random.choice(self.members), at)

    def _change(self, member: MemberId, at: Micros) -> ChangeEvent:
        """Return what one member does: mostly an opt-out, else an opt-in, a move, an erasure."""
        dice = self._random.random()
        version = self._versions.get(member, 0)
        if member not in self._erased:
            self._versions[member] = version + 1
        common: dict[str, Any] = {
            "event_id": self._event_id(),
            "member": member,
            "effective_at": at,
            "recorded_at": at,
            "source": "demo",
        }
        if dice < 0.01 and len(self._erased) < _ERASED_MAX:
            self._erased.add(member)
            return MemberErased(**common)
        if dice < 0.2:
            return MemberRelocated(
                jurisdiction=self._random.choices(self._places, self._weights)[0],
                age_band=self._random.choice(list(AgeBand)),
                **common,
            )
        choice = Choice.OPT_OUT
        observed = None
        if dice >= 0.75:
            choice = Choice.OPT_IN
            # Half of those who opt in had the latest page before them; the other half chose on an
            # old one.
            observed = self._random.choice([version, None])
        basis = self._random.choice(["LEGITIMATE_INTEREST", "OTHER"])
        return ConsentChanged(
            purpose=PURPOSE, choice=choice, observed_version=observed, legal_basis=basis, **common
        )

    def write_datasets(self, directory: Path) -> dict[str, Path]:
        """Write a Parquet data set for each trainer of the demo.

        It has rows of all members and some unknown ones.
        """
        paths = {}
        for trainer, name in DATASETS.items():
            path = directory / name
            path.mkdir(parents=True)
            table = self._dataset(name)
            size = -(-table.num_rows // _FILES)
            for number in range(_FILES):
                pq.write_table(table.slice(number * size, size), path / f"part-{number}.parquet")
            paths[trainer] = path
        return paths

    def _dataset(self, name: str) -> pa.Table:
        if name == "profiles":  # one row a member without further columns: the member's own answer
            return pa.table(
                {
                    "member_id": pa.array([*self.members, "demo:nobody", None]),
                    "text": self._texts(len(self.members) + 2),
                }
            )
        random_numbers = np.random.default_rng(SEED + len(name))
        counts = random_numbers.integers(0, 4, len(self.members))
        owners = np.repeat(np.arange(len(self.members)), counts)
        members = [self.members[owner] for owner in owners.tolist()]
        elsewhere = random_numbers.random(len(members)) < 0.05
        strange = random_numbers.choice(np.array(self._places), len(members)).tolist()
        places = []
        for member, away, strange_place in zip(members, elsewhere.tolist(), strange, strict=True):
            if away:
                places.append(strange_place)
            else:
                places.append(self.homes[member])
        columns: dict[str, Any] = {
            "member_id": members,
            "jurisdiction": places,
            "text": self._texts(len(members)),
        }
        if name == "posts":
            columns["category"] = random_numbers.choice(
                np.array(["posts", "groups", "feedback"]), len(members)
            ).tolist()
            days = random_numbers.integers(11_000, 19_900, len(members))  # 2000 to mid 2024
            columns["collected_at"] = pa.array(days.astype(np.int32), pa.int32()).cast(pa.date32())
        return pa.table(columns)

    def _texts(self, count: int) -> list[str]:
        return [f"synthetic text {number % 997}" for number in range(count)]

    def _event_id(self) -> bytes:
        return self._random.getrandbits(128).to_bytes(16, "big")
