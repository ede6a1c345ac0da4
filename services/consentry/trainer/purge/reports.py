"""A purge's plan, result and verification, as text for a person and as fields for JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from consentry.trainer.purge.dataset import Dataset, PurgePlan, Verified
from consentry.trainer.purge.receipts import as_fields
from consentry.trainer.purge.row_selector import RowSelector
from consentry.trainer.purge.session import Applied

_OUTCOMES = ("clean", "rows are left", "cannot tell")


def plan_fields(dataset: Dataset, plan: PurgePlan, selector: RowSelector) -> dict[str, Any]:
    """Return a purge's plan as JSON fields, with files, rows and bytes by order."""
    orders: dict[str, dict[str, int]] = {}
    for order_id in selector.order_ids:
        touched, rows, size_bytes = plan.touched_by(order_id)
        orders[order_id] = {"files": touched, "rows": rows, "bytes": size_bytes}
    files = tuple(file.as_fields() for file in plan.files)
    return asdict(plan) | {"files": files, "dataset": dataset.name, "orders": orders}


def plan_text(plan: PurgePlan, selector: RowSelector) -> str:
    """Return a purge's plan as a table: one line for each order, and one for all."""
    lines = [
        f"version {plan.version}: {plan.files_looked_at:,} files, {plan.rows_looked_at:,} rows",
        f"{'files':>8} {'rows':>12} {'bytes':>16}  order",
    ]
    for order_id in selector.order_ids:
        files, rows, size_bytes = plan.touched_by(order_id)
        lines.append(f"{files:>8,} {rows:>12,} {size_bytes:>16,}  {order_id}")
    rows = size_bytes = 0
    for file in plan.files:
        rows += sum(file.selected.values())
        size_bytes += file.bytes
    lines.append(f"{len(plan.files):>8,} {rows:>12,} {size_bytes:>16,}  in all")
    for line in _unknown_lines(plan.unknown):
        lines.append(f"{line}; without `--unknown purge`, apply and verify will exit 2")
    return "\n".join(lines)


def result_fields(dataset: Dataset, applied: Applied) -> dict[str, Any]:
    """Return what a purge did, as fields of a JSON report."""
    return asdict(applied.result) | {
        "dataset": dataset.name,
        "receipts": [as_fields(receipt) for receipt in applied.receipts],
        "vacuumed": list(applied.vacuumed),
    }


def result_text(dataset: Dataset, applied: Applied) -> str:
    """Return what a purge did as text for a person, one line for each receipt."""
    result = applied.result
    removed = sum(result.rows_removed.values())
    lines = [
        f"{dataset.name}: {removed:,} rows removed from {result.files_rewritten:,} files",
        f"version {result.version_before} -> {result.version_after}",
    ]
    for receipt in applied.receipts:
        lines.append(_order_line(receipt.result.value, receipt.rows_removed, receipt.order_id))
    for name, rows in result.rows_removed.items():
        # No order asked for these rows, so no receipt shows them.
        if name.startswith("excluded:"):
            outcome = "NOT_FOUND"
            if rows:
                outcome = "DELETED"
            lines.append(_order_line(outcome, rows, name))
    if applied.vacuumed:
        lines.append(f"vacuumed: {len(applied.vacuumed)} old versions or files")
    if applied.old_versions and removed:
        lines.append(applied.old_versions)
    lines += sorted(set(result.notes))
    return "\n".join(lines + _unknown_lines(result.unknown))


def _order_line(result: str, rows: int, order_id: str) -> str:
    return f"{result:<10} {rows:>12,}  {order_id}"


def verified_fields(dataset: Dataset, verified: Verified, selector: RowSelector) -> dict[str, Any]:
    """Return what the verification of a purge found, as JSON fields."""
    return asdict(verified) | {"dataset": dataset.name, "orders": list(selector.order_ids)}


def verified_text(dataset: Dataset, verified: Verified, selector: RowSelector) -> str:
    """Return what the verification of a purge found as text, its outcome last."""
    orders = len(selector.order_ids)
    lines = [f"{dataset.name}: {verified.files:,} files, {verified.rows:,} rows, {orders} orders"]
    for order_id, rows in verified.rows_left.items():
        lines.append(f"left: {rows:,} rows of {order_id}")
    for version, rows in verified.old_versions.items():
        lines.append(f"left: {rows:,} rows in the older version {version}")
    for problem in verified.unreadable:
        lines.append(f"cannot be read: {problem}")
    if verified.unknown:
        lines.append(f"{verified.unknown:,} rows of which something is not known")
    lines.append(_OUTCOMES[verified.exit_status])
    return "\n".join(lines)


def _unknown_lines(unknown: int) -> list[str]:
    if not unknown:
        return []
    return [f"{unknown:,} rows are kept: something about them is not known"]
