"""What the filter of every library promises: the rows that the rules allow, as they were, and every
row counted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from functools import cache
from typing import Any

import pyarrow as pa
import pytest
from tests.contract.filters import corpus
from tests.contract.filters.corpus import Corpus, Ids

from consentry.domain.errors import InvalidInput
from consentry.domain.values import Reason
from consentry.trainer.deciding.columns import Columns
from consentry.trainer.deciding.decider import SnapshotDecider
from consentry.trainer.filters.dispatch import filter_any


@cache
def shared(ids: Ids) -> Corpus:
    """The small corpus, for tests that change nothing of it."""
    return corpus.small(ids)


class FilterContract(ABC):
    """A subclass says how its library holds rows; whatever is made of a table has to come back as a
    table alike.
    """

    is_lazy = False
    """Whether rows are decided when the result is read, not when it is asked for."""

    @abstractmethod
    def make(self, table: pa.Table) -> Any:
        """The rows as the library holds them."""

    @abstractmethod
    def read(self, data: Any) -> pa.Table:
        """All that the library holds, the types as the library has them."""

    def result_type(self, data: Any) -> type:
        """The type that a filter of this data returns."""
        return type(data)

    @pytest.mark.parametrize("ids", ["text", "integers"])
    def test_exactly_the_rows_that_the_rules_allow_stay_as_they_were(self, ids: Ids) -> None:
        """Every row too many is somebody's who said no; every row too few is a model that is worse
        for nothing.
        """
        found = shared(ids)
        left = filter_any(found.decider, self.make(found.table), purpose=found.purpose)
        assert self.read(left).equals(self.read(self.make(found.kept)), check_metadata=False)

    @pytest.mark.parametrize("ids", ["text", "integers"])
    def test_every_row_is_counted_by_its_reason(self, ids: Ids) -> None:
        """A row that is missing from the count was left out by nobody knows whom."""
        found, tally = shared(ids), Counter[Reason]()
        self.read(
            filter_any(found.decider, self.make(found.table), purpose=found.purpose, tally=tally)
        )
        assert tally == found.reasons
        assert set(tally) == set(Reason) - {Reason.STALE}, "the corpus has no row of some reason"

    def test_what_was_counted_before_is_kept(self) -> None:
        """A run counts over all its data sets."""
        found = shared("text")
        tally = Counter({Reason.QUARANTINED: 1, Reason.STALE: 5})
        self.read(
            filter_any(found.decider, self.make(found.table), purpose=found.purpose, tally=tally)
        )
        assert tally == found.reasons + Counter({Reason.QUARANTINED: 1, Reason.STALE: 5})

    def test_the_type_is_that_of_what_was_given(self) -> None:
        """Three lines in a training job: the fourth would turn our type into theirs."""
        found = shared("text")
        data = self.make(found.table)
        assert type(filter_any(found.decider, data, purpose=found.purpose)) is self.result_type(
            data
        )

    def test_nothing_stays_while_freshness_is_not_proven(self) -> None:
        """Somebody whose opt-out has not arrived would be trained on."""
        found, tally = shared("text"), Counter[Reason]()
        stale = SnapshotDecider(found.snapshot, at=found.at, stale_after_seconds=0)
        assert stale.stale_detail
        left = self.read(
            filter_any(stale, self.make(found.table), purpose=found.purpose, tally=tally)
        )
        assert left.num_rows == 0
        assert left.schema.names == found.table.schema.names
        assert tally == {Reason.STALE: found.table.num_rows}

    def test_a_missing_column_is_told_with_those_there_are(self) -> None:
        """A data set that calls its members otherwise would pass unfiltered, or be left out
        whole.
        """
        found = shared("text")
        table = found.table.rename_columns({"member_id": "author"}).slice(0, 10)
        with pytest.raises(InvalidInput, match=r"'member_id'.*'row', 'author', 'jurisdiction'"):
            filter_any(found.decider, self.make(table), purpose=found.purpose)
        with pytest.raises(InvalidInput, match="'country'"):
            filter_any(
                found.decider,
                self.make(found.table.slice(0, 10)),
                purpose=found.purpose,
                columns=Columns(jurisdiction="country"),
            )

    def test_columns_of_other_names_are_told(self) -> None:
        """Nobody renames a terabyte for us."""
        found, names = (
            shared("text"),
            {"member_id": "author", "jurisdiction": "place", "category": "kind"},
        )
        names["collected_at"] = "since"
        columns = Columns(member="author", jurisdiction="place", category="kind", collected="since")
        data = self.make(found.table.rename_columns(names))
        left = self.read(filter_any(found.decider, data, purpose=found.purpose, columns=columns))
        assert left["row"].to_pylist() == found.kept_rows

    def test_a_table_of_members_alone_is_enough(self) -> None:
        """Whoever has only ids is answered by what is known of the members."""
        found, tally = shared("text"), Counter[Reason]()
        members = found.table.select(["member_id"])
        alone = corpus.decided_alone(found.snapshot, members, at=found.at, purpose=found.purpose)
        left = self.read(
            filter_any(found.decider, self.make(members), purpose=found.purpose, tally=tally)
        )
        allowed = [reason in (Reason.OPTED_IN, Reason.DEFAULT_ON) for reason in alone]
        assert (
            left["member_id"].to_pylist()
            == members.filter(pa.array(allowed))["member_id"].to_pylist()
        )
        assert tally == Counter(alone)

    def test_no_rows_give_no_rows_of_the_same_columns(self) -> None:
        """The last shard of a data set is often empty, and a job should not fall over it."""
        found, tally = shared("text"), Counter[Reason]()
        left = filter_any(
            found.decider, self.make(found.table.slice(0, 0)), purpose=found.purpose, tally=tally
        )
        assert self.read(left).num_rows == 0
        assert self.read(left).schema.names == found.table.schema.names
        assert not tally

    def test_rows_without_any_member_are_held_and_counted(self) -> None:
        """A column of gaps is a mistake of somebody's, who has to see it in the count."""
        found, tally = shared("text"), Counter[Reason]()
        nobody = found.table.slice(0, 50).set_column(1, "member_id", pa.nulls(50, pa.string()))
        left = filter_any(found.decider, self.make(nobody), purpose=found.purpose, tally=tally)
        assert self.read(left).num_rows == 0
        assert tally == {Reason.QUARANTINED: 50}

    def test_what_was_given_is_not_changed(self) -> None:
        """The same frame may go elsewhere, where other rules hold."""
        found = shared("text")
        data = self.make(found.table)
        if isinstance(data, pa.RecordBatchReader):
            pytest.skip("a reader is used up by being read")  # there is nothing left to compare
        self.read(filter_any(found.decider, data, purpose=found.purpose))
        assert self.read(data).equals(self.read(self.make(found.table)), check_metadata=False)

    def test_who_opts_out_before_the_rows_are_read_is_left_out_where_reading_is_late(self) -> None:
        """Between the line that filters and the first batch may lie hours."""
        found = corpus.small("text")
        member = corpus.allowed_member(found)
        left = filter_any(found.decider, self.make(found.table), purpose=found.purpose)
        corpus.opt_out(found.snapshot, member)
        members = self.read(left)["member_id"].to_pylist()
        assert (member not in members) == self.is_lazy
        again = self.read(filter_any(found.decider, self.make(found.table), purpose=found.purpose))
        assert member not in again["member_id"].to_pylist()
