"""The consent table's refusals to write: it has another owner, or went back."""

from __future__ import annotations

from consentry.domain.errors import ConsentryError, Fenced, TableWentBack


def refusal_of(
    check: str, partition: int, *, epoch: int, held_epoch: int | None, held_offset: int | None
) -> Fenced | TableWentBack:
    """Return the error for a write that the consent table refused, for `EPOCH` or `OFFSET`.

    `epoch` is the writer's; `held_epoch` and `held_offset` are the table's. A higher epoch in the
    table means another owner (Fenced); anything else means that the table lost something.
    """
    if check == "EPOCH" and held_epoch is not None and held_epoch > epoch:
        return Fenced(
            f"Partition {partition} is owned under epoch {held_epoch}; this worker holds {epoch}.",
            code="table.fenced",
            fix="nothing: the newer owner goes on",
        )
    return TableWentBack(
        f"Partition {partition} of the table holds epoch {held_epoch} and offset {held_offset}, "
        "not what was stored last.",
        code=f"table.{check.lower()}",
        fix="nothing: the worker rewinds to what the table holds, or rebuilds it",
    )


def reason_of(error: ConsentryError) -> str:
    """Return the metric label of a refused write to the consent table: `epoch` or `offset`."""
    return "offset" if error.code == "table.offset" else "epoch"
