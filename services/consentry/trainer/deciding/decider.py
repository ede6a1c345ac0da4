"""The decider of the trainer's filters and training runs: it answers for the rows of a table."""

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
    """The trainer's client, or its stand-in where it cannot be, that decides tables of rows.

    It cannot be in another process, for example.
    """

    @property
    def snapshot_id(self) -> str:
        """The name of all that the decider's answers rest on.

        It is equal only where the same records and controls are held.
        """
        ...

    @property
    def stale_detail(self) -> str:
        """The reason why the decider allows nothing now; empty if freshness is proven."""
        ...

    def decide_table(
        self,
        table: pa.Table,
        *,
        purpose: str,
        columns: Columns | None = None,
        at_least: str | None = None,
    ) -> Decisions:
        """Decide every row of a trainer's table; see the module decide_table.

        With the token `at_least` STALE unless it is reached.
        """
        ...


class SnapshotDecider:
    """A trainer's decider by a snapshot that does not move, such as that of a bundle.

    It decides as of `at`, or of now where it is None. Nothing tells whether such a snapshot is
    still true: `stale_after_seconds` bounds how old it may be.
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
        """The name of the snapshot that this decider answers by; see Decider."""
        return self.snapshot.snapshot_id

    @property
    def stale_detail(self) -> str:
        """The reason why this decider's snapshot is too old; see Decider."""
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
        """Decide every row by the snapshot that does not move; see Decider.

        Raises Unavailable for a token: what does not move never reaches one.
        """
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
