"""Deciders that tests send to other processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
from tests.contract.filters import corpus

from consentry.trainer.deciding.columns import Columns
from consentry.trainer.deciding.decide_table import Decisions
from consentry.trainer.deciding.decider import SnapshotDecider


class Sent:
    """Decides as the small corpus does, in any process, until the file at `until` is there: then it
    is STALE.

    `portable` gives what is sent; that cannot be asked in the process in which it was made.
    """

    def __init__(self, ids: Any = "text", until: Path | None = None) -> None:
        self._ids = ids
        self._until = until
        self._decider: SnapshotDecider | None = None

    def portable(self) -> Sent:
        """A copy that has not been asked yet."""
        return Sent(self._ids, self._until)

    def __reduce__(self) -> Any:
        return Sent, (self._ids, self._until)

    @property
    def snapshot_id(self) -> str:
        """See Decider."""
        return self._own().snapshot_id

    @property
    def positions(self) -> dict[tuple[str, int], int]:
        """How far what is known has been read."""
        return self._own().snapshot.positions

    @property
    def stale_detail(self) -> str:
        """See Decider."""
        return "the test says so" if self._until is not None and self._until.exists() else ""

    def decide_table(
        self,
        table: pa.Table,
        *,
        purpose: str,
        columns: Columns | None = None,
        at_least: str | None = None,
    ) -> Decisions:
        """See Decider."""
        own = self._own()
        own._stale_after_seconds = -1.0 if self.stale_detail else float("inf")
        return own.decide_table(table, purpose=purpose, columns=columns, at_least=at_least)

    def _own(self) -> SnapshotDecider:
        if self._decider is None:
            self._decider = corpus.small(self._ids).decider
        return self._decider
