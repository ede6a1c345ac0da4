"""The dry run of a control as the command prints it, for a person and as JSON."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import typer

from consentry.cli.connections import count_partitions
from consentry.cli.consent_table import open_table
from consentry.domain.controls import Control, PauseImposed, PauseLifted, PolicyPublished
from consentry.domain.impact import Impact, ReasonChange, scope_of
from consentry.domain.openings import TermsChange
from consentry.domain.values import Micros
from consentry.domain.wording import date_text, moment_of, named, place_text, terms_summary
from consentry.ops.clock import system_clock
from consentry.ops.settings import Settings
from consentry.table.dry_run import DryRunReport, make_report
from consentry.wire.jurisdictions import name_of

ROWS_MAX = 40


def show_impact(
    control: Control, settings: Settings, log: Sequence[Control], *, as_json: bool
) -> None:
    """Print the dry run of a control: what it would change. Sends nothing.

    Raises Unavailable where the table cannot be trusted.
    """
    partitions = count_partitions(settings)
    with open_table(settings, partitions) as table:
        report = make_report(
            control,
            log,
            table,
            partitions=partitions,
            datasets=settings.declared_subscribers(),
            clock=system_clock,
            staleness_seconds=settings.staleness_seconds,
        )
    if as_json:
        typer.echo(json.dumps(_data(report)))
        return
    if not sys.stdout.isatty():
        for line in _lines(report):
            typer.echo(line)
        return
    width = shutil.get_terminal_size().columns
    for line in _lines(report):
        typer.echo(_wrapped(line, width))


def _wrapped(line: str, width: int) -> str:
    """Return a line wrapped for a terminal; its further lines are indented deeper."""
    if len(line) <= width:
        return line
    indent = " " * (len(line) - len(line.lstrip()) + 4)
    return textwrap.fill(line, width, subsequent_indent=indent, drop_whitespace=False)


def _lines(report: DryRunReport) -> Iterator[str]:
    """Give the report line by line, for a person."""
    first, *later = report.impacts
    for_uses = ""
    if first.at != first.known_at:
        for_uses = f", for uses on {date_text(first.at)}"
    yield f"DRY RUN, nothing is sent: {_control_text(report)}"
    yield (
        f"asked of {first.members + report.quarantined} members as of "
        f"{date_text(first.known_at)}, the table being {report.age_seconds:.1f} s old{for_uses}"
    )
    if not isinstance(report.control, PauseImposed):
        opens_use = "no, nowhere"
        if report.opens_use:
            opens_use = "YES"
        yield f"opens use: {opens_use}"
    yield ""
    yield from _covered_lines(report)
    yield ""
    if report.changes_nothing:
        yield "it changes nothing: every answer and every reason stays what it is"
    yield from _impact_lines(first)
    for impact in later:
        yield ""
        yield f"once the notice ends, for uses on {date_text(impact.at)}:"
        yield from _impact_lines(impact)
    yield from _terms_lines(report)
    yield ""
    yield from _dataset_lines(report)
    yield from _notes(report)


def _control_text(report: DryRunReport) -> str:
    """Return the control in one line."""
    control = report.control
    effective = f"effective {date_text(control.effective_at)}"
    at = report.impacts[0].at
    jurisdictions = report.after.jurisdictions
    codes = jurisdictions.expanded(scope_of(control, report.after), at=at)
    where = named(codes, jurisdictions, at=at)
    if isinstance(control, PauseImposed):
        what = ", ".join(control.scope.purposes or ("every purpose",))
        only = ""
        if control.scope.categories:
            only = f", only {', '.join(control.scope.categories)}"
        reach = "going forward"
        if control.requires_purge:
            reach = "prior and future data"
        return (
            f"pause {control.pause} v{control.version} of {what} in {where}{only}, "
            f"{effective}, {reach}"
        )
    if isinstance(control, PauseLifted):
        opt_ins = "kept"
        if control.voids_opt_ins:
            opt_ins = "void"
        return (
            f"lift of {control.pause} up to v{control.version} in {where}, {effective}, "
            f"earlier opt-ins {opt_ins}"
        )
    return f"policy {control.version} for {where}, {effective}"


def _covered_lines(report: DryRunReport) -> Iterator[str]:
    """Give how many members the control covers, and where they last lived."""
    first = report.impacts[0]
    yield f"covered: {sum(first.covered.values())} members, by where they last lived"
    ranked = sorted(first.covered.items(), key=lambda item: -item[1])
    for code, members in ranked[:ROWS_MAX]:
        yield f"  {members:>9}  {place_text(code, name_of)}"
    if len(ranked) > ROWS_MAX:
        yield f"  … and {len(ranked) - ROWS_MAX} more jurisdictions; --json has all"
    if first.unplaced:
        yield (
            f"without known residence: {first.unplaced} members, excluded before and after "
            "unless a row names a place"
        )
    if report.quarantined:
        yield (
            f"quarantined: {report.quarantined} members whose record cannot be read; they are "
            "excluded before and after"
        )


def _impact_lines(impact: Impact) -> Iterator[str]:
    """Give how the answers change at one moment."""
    yield f"allowed → excluded: {_counts_text(impact.excluded())}"
    yield f"excluded → allowed: {_counts_text(impact.opened())}"
    if impact.changes:
        yield from _change_rows(impact.changes[:ROWS_MAX])
        if len(impact.changes) > ROWS_MAX:
            yield f"  … and {len(impact.changes) - ROWS_MAX} more kinds of change; --json has all"
    for (purpose, reason), members in impact.unchanged.items():
        yield f"  unchanged: {members} covered members for {purpose}, {reason}"


def _counts_text(members_by_purpose: Mapping[str, int]) -> str:
    counts = [f"{members} for {purpose}" for purpose, members in members_by_purpose.items()]
    if not counts:
        return "none"
    return ", ".join(counts)


def _change_rows(changes: Sequence[ReasonChange]) -> Iterator[str]:
    """Give the kinds of change as a table: its head, then one line for each."""
    rows = [("purpose", "lives in", "before", "after", "members")]
    for change in changes:
        place = change.jurisdiction or "unknown"
        before = f"{_answer_text(change.was_allowed)} {change.before}"
        after = f"{_answer_text(change.is_allowed)} {change.after}"
        rows.append((change.purpose, place, before, after, str(change.members)))
    widths = [0, 0, 0, 0, 0]
    for row in rows:
        for column, cell in enumerate(row):
            widths[column] = max(widths[column], len(cell))
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:4], widths, strict=False)]
        members = row[4].rjust(widths[4])
        yield f"  {'  '.join(cells)}  {members}"


def _answer_text(is_allowed: bool) -> str:
    if is_allowed:
        return "allowed"
    return "excluded"


def _terms_lines(report: DryRunReport) -> Iterator[str]:
    """Give what a policy changes in the terms, and whether that opens use."""
    if not isinstance(report.control, PolicyPublished):
        return
    at = report.impacts[0].at
    jurisdictions = report.after.jurisdictions
    yield ""
    if report.terms:
        yield "terms:"
    else:
        yield "terms: the same everywhere"
    for change in report.terms:
        yield f"  {change.purpose} in {named(change.jurisdictions, jurisdictions, at=at)}"
        yield f"    was  {terms_summary(change.old)}"
        yield f"    is   {terms_summary(change.new)}"
        for how in change.opens:
            yield f"    OPENS USE: {how}"
        if change.paused and change.opens:
            yield (
                f"    (paused in {named(change.paused, jurisdictions, at=at)}: there only once "
                "the pause ends)"
            )


def _dataset_lines(report: DryRunReport) -> Iterator[str]:
    """Give the data sets, and those that would owe a receipt."""

    named = ", ".join(f"{dataset} ({subscriber})" for subscriber, dataset in report.datasets)
    if not named:
        yield "data sets: none is declared (CONSENTRY_SUBSCRIBERS), so nobody would owe a receipt"
    else:
        yield f"data sets: {named}"
    if report.order is None:
        yield "no purge order: what is stored stays stored, and orders that are open stay open"
        return
    consequence = "it stays open, as nobody is there to answer it"
    if named:
        consequence = f"a receipt is owed for {named}"
    due = date_text(report.order.due_at)
    yield f"purge order {report.order.order_id}, due {due}: {consequence}"


def _notes(report: DryRunReport) -> Iterator[str]:
    """Give notes on what the numbers leave out."""
    control = report.control
    if isinstance(control, PauseImposed):
        yield (
            "note: rows that name a jurisdiction of the scope themselves are excluded too, "
            "whoever's they are"
        )
        if control.scope.categories is not None:
            yield (
                "note: it pauses only some categories; the numbers are for data of unknown "
                "category, and rows of "
                "other categories stay as they are"
            )
    for purpose, codes in report.freed.items():
        where = named(codes, report.after.jurisdictions, at=report.impacts[0].at)
        yield (
            f"note: rows that name {where} themselves may be used again for {purpose}, as the "
            "choices of their members allow"
        )
    if isinstance(control, PolicyPublished) and _looks_at_rows(control):
        yield (
            "note: the terms look at rows too (category, time of collection); the numbers are "
            "for members alone"
        )


def _looks_at_rows(policy: PolicyPublished) -> bool:
    """Return True if some terms of a policy depend on a row's category or time of collection."""
    for terms in policy.terms:
        if terms.categories is not None or terms.collected_from is not None:
            return True
    return False


def _data(report: DryRunReport) -> dict[str, Any]:
    """Return the report as JSON fields."""
    first, *later = report.impacts
    order = report.order
    due_at = None
    purge_order = None
    if order is not None:
        due_at = _iso(order.due_at)
        purge_order = {"order_id": order.order_id, "due_at": due_at}
    datasets = []
    for subscriber, dataset in report.datasets:
        datasets.append(
            {
                "subscriber": subscriber,
                "dataset": dataset,
                "owes_receipt": order is not None,
                "due_at": due_at,
            }
        )
    after_notice = [_impact_data(impact) for impact in later]
    terms = [_terms_data(change) for change in report.terms]
    return {
        "dry_run": True,
        "sent": False,
        "control": _control_data(report.control),
        "table_age_seconds": round(report.age_seconds, 1),
        "quarantined": report.quarantined,
        "opens_use": report.opens_use,
        "changes_nothing": report.changes_nothing,
        "freed": report.freed,
        **_impact_data(first),
        "after_notice": after_notice,
        "terms": terms,
        "purge_order": purge_order,
        "datasets": datasets,
    }


def _control_data(control: Control) -> dict[str, Any]:
    fields: dict[str, Any] = {"kind": type(control).__name__, "version": control.version}
    if not isinstance(control, PolicyPublished):
        fields["pause"] = control.pause
    return fields | {
        "effective_at": _iso(control.effective_at),
        "recorded_at": _iso(control.recorded_at),
    }


def _impact_data(impact: Impact) -> dict[str, Any]:
    unchanged = []
    for (purpose, reason), members in impact.unchanged.items():
        unchanged.append({"purpose": purpose, "reason": reason, "members": members})
    return {
        "at": _iso(impact.at),
        "known_at": _iso(impact.known_at),
        "members": impact.members,
        "covered": dict(impact.covered),
        "without_residence": impact.unplaced,
        "allowed_to_excluded": dict(impact.excluded()),
        "excluded_to_allowed": dict(impact.opened()),
        "changes": [change._asdict() for change in impact.changes],
        "unchanged": unchanged,
    }


def _terms_data(change: TermsChange) -> dict[str, Any]:
    return {
        "purpose": change.purpose,
        "jurisdictions": list(change.jurisdictions),
        "was": _one_terms_data(change.old),
        "is": _one_terms_data(change.new),
        "was_text": terms_summary(change.old),
        "is_text": terms_summary(change.new),
        "opens": list(change.opens),
        "paused": list(change.paused),
    }


def _one_terms_data(terms: Any) -> Mapping[str, Any] | None:
    if terms is None:
        return None
    categories = None
    if terms.categories is not None:
        categories = list(terms.categories)
    return {
        "regime": terms.regime.value,
        "basis": terms.basis,
        "notice_until": _iso_or_none(terms.notice_until),
        "categories": categories,
        "collected_from": _iso_or_none(terms.collected_from),
        "minors": terms.minors.value,
        "purge_on_opt_out": terms.purge_on_opt_out,
        "purge_within_seconds": terms.purge_within // 1_000_000,
    }


def _iso_or_none(instant: Micros | None) -> str | None:
    if instant is None:
        return None
    return _iso(instant)


def _iso(instant: Micros) -> str:
    return moment_of(instant).isoformat()
