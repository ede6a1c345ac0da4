"""The decider of every filter and every training run: it answers for the rows of a table."""

from __future__ import annotations

import math
from typing import Protocol

import pyarrow as pa

from consentry.domain.errors import Unavailable
from consentry.domain.values import Micros
from consentry.ops.clock import Clock, system_clock
from consentry.trainer.deciding.columns import Columns, find_columns
from consentry.trainer.deciding.decide_table import Decisions, decide_table
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.wire.freshness import BUNDLE_CLOCKS_SECONDS_MAX, FOREVER, stale_age


class Decider(Protocol):
    """The client, or something that stands for it where the client cannot be, such as in another
    process.
    """

    @property
    def snapshot_id(self) -> str:
        """Names all that answers rest on: equal only where the same records and controls are
        held.
        """
        ...

    @property
    def stale_detail(self) -> str:
        """The reason why nothing is allowed now; empty if freshness is proven."""
        ...

    def decide_table(
        self,
        table: pa.Table,
        *,
        purpose: str,
        columns: Columns | None = None,
        at_least: str | None = None,
    ) -> Decisions:
        """Decide every row; see filter.decide_table.

        With the token `at_least` STALE unless it is reached.
        """
        ...


class SnapshotDecider:
    """Judges by a view that does not move, such as that of a bundle: as of `at`, or of now where it
    is None.

    Nothing tells whether a view like this is still true: `stale_after_seconds` bounds how old it
    may be.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        at: Micros | None = None,
        clock: Clock = system_clock,
        stale_after_seconds: float = float("inf"),
    ) -> None:
        self.snapshot = snapshot
        self._at = at
        self._clock = clock
        self._stale_after_seconds = stale_after_seconds

    @property
    def snapshot_id(self) -> str:
        """See Judge."""
        return self.snapshot.snapshot_id

    @property
    def stale_detail(self) -> str:
        """See Judge."""
        bound = self._stale_after_seconds
        return stale_age(
            "the snapshot",
            self.snapshot.staleness_seconds(self._clock()),
            bound,
            # Without a bound, such as for a past `at`, no clock can make the snapshot too old.
            clocks_seconds=math.inf if math.isinf(bound) else BUNDLE_CLOCKS_SECONDS_MAX,
        )

    def decide_table(
        self,
        table: pa.Table,
        *,
        purpose: str,
        columns: Columns | None = None,
        at_least: str | None = None,
    ) -> Decisions:
        """See Judge. Raises Unavailable for a token: what does not move never reaches one."""
        if at_least is not None:
            raise Unavailable(
                "A view that does not follow cannot wait for a consistency token.",
                code="trainer.not_following",
                fix="ask a client, or take a newer bundle",
            )
        return decide_table(
            table,
            self.snapshot,
            purpose=purpose,
            at=self._clock() if self._at is None else self._at,
            known_at=FOREVER,
            columns=find_columns(table.column_names, columns),
            is_fresh=not self.stale_detail,
        )
