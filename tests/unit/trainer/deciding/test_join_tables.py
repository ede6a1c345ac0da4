"""The decision as tables to join with: looked up by hand, each row gets the answer that the rules
give it.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.contract.filters import corpus
from tests.strategies import PURPOSE, day, policy, terms
from tests.unit.trainer.deciding.test_decide_table import (
    MEMBERS,
    alone,
    change_by_chance,
    control_by_chance,
    new_snapshot,
    put,
    question_by_chance,
    record_by_chance,
    rows_by_chance,
)

from consentry.domain.decisions import Row
from consentry.domain.values import MEMBER_ID_PATTERN, MemberId, Reason
from consentry.trainer.deciding.decide_table import REASONS
from consentry.trainer.deciding.join_tables import JoinTables, decision_tables
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.wire.freshness import FOREVER
from consentry.wire.jurisdictions import iso_jurisdictions
from consentry.wire.partitions import partition_of


def column(tables: JoinTables, name: str) -> Mapping[Any, int]:
    """One of the tables as a mapping; fails where a key is there twice, as a join would multiply
    rows.
    """
    table = getattr(tables, name)
    keys, values = (one.to_pylist() for one in table.columns)
    assert len(set(keys)) == len(keys)
    return dict(zip(keys, values, strict=True))


def looked_up(tables: JoinTables, member: str | None, row: Row) -> Reason:
    """The reason of one row, as an engine that joins finds it."""
    if member is None or MEMBER_ID_PATTERN.fullmatch(member) is None:
        standing = tables.quarantined
    else:
        tainted = partition_of(member.encode(), tables.partitions) in tables.tainted
        standing = column(tables, "members").get(
            member, tables.quarantined if tainted else tables.nobody
        )
    place, kind = tables.no_place, tables.no_kind
    if row.jurisdiction is not None:
        place = column(tables, "places").get(row.jurisdiction, tables.unknown_place)
    if row.category is not None:
        kind = column(tables, "kinds").get(row.category, tables.other_kind)
    reached = (
        0 if row.collected is None else sum(instant <= row.collected for instant in tables.cut_offs)
    )
    code = standing
    for size, value in zip(tables.sizes, (place, kind, reached), strict=True):
        assert 0 <= value < size
        code = code * size + value
    return REASONS[column(tables, "answers")[code]]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**48))
def test_each_row_gets_the_answer_of_the_rules(seed: int) -> None:
    """Spark trains on whom these tables allow: no rule may be lost on the way into them."""
    random = Random(seed)
    snapshot = new_snapshot(
        *(control_by_chance(random, number) for number in range(random.randrange(8)))
    )
    put(snapshot, *(record_by_chance(random, member) for member in MEMBERS[: random.randrange(12)]))
    for step in range(4):
        change_by_chance(random, snapshot, 100 + step)
    rows, question = rows_by_chance(random), question_by_chance(random)

    tables = decision_tables(snapshot, **question)

    assert [looked_up(tables, member, row) for member, row in rows] == alone(
        rows, snapshot, question
    )


def test_every_known_code_has_the_place_that_decides_as_it_does() -> None:
    """Thousands of codes share a few places: one that was put with the wrong ones would get their
    terms.
    """
    snapshot = Snapshot(4, iso_jurisdictions())
    for control in corpus.controls():
        snapshot.apply_control(control)
    question: dict[str, Any] = {"purpose": PURPOSE, "at": day(100), "known_at": FOREVER}
    tables = decision_tables(snapshot, **question)
    places, (_, kinds, times) = column(tables, "places"), tables.sizes
    answers = tables.answers["reason"].to_numpy()

    for code in snapshot.controls.jurisdictions.codes:
        found = answers[
            ((tables.nobody * tables.sizes[0] + places[code]) * kinds + tables.other_kind) * times
        ]
        decision = snapshot.decide(
            MemberId("m"), Row(jurisdiction=code, category="*"), stale_detail="", **question
        )
        assert REASONS[found] is decision.reason, code
    assert len(places) == len(snapshot.controls.jurisdictions.codes)


def test_the_tables_stay_small_however_many_codes_and_members_there_are() -> None:
    """They go to every executor: one answer for each code and member would be larger than the
    data.
    """
    given = corpus.small()
    tables = decision_tables(given.snapshot, purpose=given.purpose, at=given.at, known_at=FOREVER)

    assert tables.answers.num_rows < 20_000
    assert tables.members.num_rows >= len(given.snapshot.records)
    assert np.array_equal(tables.answers["code"].to_numpy(), np.arange(tables.answers.num_rows))
    assert tables.snapshot_id == given.snapshot.snapshot_id


def test_who_is_held_is_in_the_tables_though_nothing_else_is_recorded_of_them() -> None:
    """Whoever is missing from them is nobody, and allowed: an unreadable record may have been an
    opt-out.
    """
    snapshot = new_snapshot(policy(901, terms("*"), on=1))
    key = b"only-held"
    snapshot.apply_records(
        partition_of(key, snapshot.partitions), [key], [b"damaged, whatever it was"]
    )

    tables = decision_tables(snapshot, purpose=PURPOSE, at=day(25), known_at=FOREVER)

    assert looked_up(tables, "only-held", Row(jurisdiction="US")) is Reason.QUARANTINED
    assert looked_up(tables, "somebody", Row(jurisdiction="US")) is Reason.DEFAULT_ON


@pytest.mark.parametrize("moment", ["before", "after"])
def test_who_changes_while_the_tables_are_made_is_in_them_once(
    moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member who is neither in the list of records nor in that of the held is nobody, and
    allowed.
    """
    snapshot = new_snapshot(policy(901, terms("*"), on=1))
    put(snapshot, record_by_chance(Random(1), "anna"))
    snapshot.quarantine([b"zoe"])
    real = Snapshot.classes

    def following(self: Snapshot, *given: Any, **more: Any) -> Any:
        found = real(self, *given, **more)
        put(snapshot, record_by_chance(Random(1), "zoe"))  # as the follower's thread does
        if moment == "after":
            snapshot.quarantine([b"mia"])
        return found

    monkeypatch.setattr(Snapshot, "classes", following)
    tables = decision_tables(snapshot, purpose=PURPOSE, at=day(25), known_at=FOREVER)

    assert column(tables, "members")["zoe"] == tables.quarantined
    assert sum(member in ("anna", "zoe") for member in column(tables, "members")) == 2
