"""`consentry explain`: why a member's data may or may not be used, now or then."""

from __future__ import annotations

import json
import textwrap
from typing import Annotated

import typer
from rich.console import Console

from consentry.cli.connections import read_controls
from consentry.cli.consent_table import read_member
from consentry.cli.settings import load_settings
from consentry.domain.controls import Controls
from consentry.domain.decisions import Row
from consentry.domain.explain import (
    ExplainQuestion,
    Explanation,
    FactNote,
    as_data,
    date_text,
    explain,
)
from consentry.domain.values import parse_member_id, parse_name
from consentry.domain.wording import place_text
from consentry.forms.fields import parse_instant
from consentry.ops.clock import system_clock
from consentry.wire.jurisdictions import iso_jurisdictions, name_of

app = typer.Typer(add_completion=False)


@app.command()
def run(
    member: Annotated[str, typer.Argument(help="Pseudonym of the member.")],
    purpose: Annotated[
        str, typer.Option(help="What the data would be used for.")
    ] = "genai_training",
    at: Annotated[
        str | None, typer.Option(help="When it would be used, ISO 8601; default: now.")
    ] = None,
    known_at: Annotated[
        str | None, typer.Option("--known-at", help="By what was recorded then; default: now.")
    ] = None,
    jurisdiction: Annotated[str | None, typer.Option(help="Where the row comes from.")] = None,
    category: Annotated[str | None, typer.Option(help="The row's data category.")] = None,
    collected: Annotated[
        str | None, typer.Option(help="When the row was collected, ISO 8601.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Explain why a member's data may or may not be used.

    Exit 0: answered, whatever the answer is. 2: cannot tell.
    """
    parse_member_id(member)
    parse_name(purpose, what="purpose")
    now = system_clock()
    asked_at = now if at is None else parse_instant(at, what="--at")
    asked_known_at = now if known_at is None else parse_instant(known_at, what="--known-at")
    row = _row(jurisdiction, category, collected)
    settings = load_settings()
    asked = ExplainQuestion(
        record=read_member(settings, member),
        row=row,
        controls=Controls(iso_jurisdictions()).after(*read_controls(settings)),
        purpose=purpose,
        at=asked_at,
        known_at=asked_known_at,
    )
    explanation = explain(asked, name_of)
    if as_json:
        typer.echo(
            json.dumps(
                {"member": member, **as_data(explanation), "controls": len(asked.controls.log)}
            )
        )
    else:
        _print(member, explanation)


def _row(jurisdiction: str | None, category: str | None, collected: str | None) -> Row | None:
    """The row asked about; None where nothing is said of one."""
    if jurisdiction is None and category is None and collected is None:
        return None
    when = (
        None
        if collected is None
        else parse_instant(collected, what="--collected", at_any_time=True)
    )
    return Row(jurisdiction=jurisdiction, category=category, collected=when)


def _print(member: str, explanation: Explanation) -> None:
    """The answer as a person reads it; wrapped on a terminal, one line a sentence elsewhere."""

    asked, decision = explanation.asked, explanation.decision
    console = Console(highlight=False, soft_wrap=True)
    outcome = "[bold green]ALLOWED[/]" if decision.allowed else "[bold red]EXCLUDED[/]"
    console.print(f"{outcome}  {decision.reason.value}")
    said = [
        ("", f"{member}, {asked.purpose}, {_row_text(asked.row)}"),
        ("", f"at {date_text(asked.at)}, by what was known on {date_text(asked.known_at)}"),
        *(
            (f"{'because' if place == 0 else ''}", text)
            for place, text in enumerate(explanation.because)
        ),
    ]
    if asked.record is None:
        said.append(("record", "none"))
    said += [(f"fact {note.fact.version}", _note_text(note)) for note in explanation.facts]
    said.append(("controls", f"{len(asked.controls.log)} read"))
    width = console.width if console.is_terminal else None
    for label, text in said:
        for line in _lines(label, text, width):
            console.print(line, markup=False)


def _row_text(row: Row | None) -> str:
    """What was asked about beside the member."""
    if row is None:
        return "the member alone"
    parts = []
    if row.jurisdiction is not None:
        parts.append(f"from {place_text(row.jurisdiction, name_of)}")
    if row.category is not None:
        parts.append(f"category {row.category}")
    if row.collected is not None:
        parts.append(f"collected {date_text(row.collected)}")
    return f"a row: {', '.join(parts)}"


def _note_text(note: FactNote) -> str:
    """A fact, and what became of it."""
    if note.why_not:
        return f"{note.text} [not counted: {note.why_not}]"
    return f"{note.text} [replaced by fact {note.replaced_by}]" if note.replaced_by else note.text


def _lines(label: str, text: str, width: int | None) -> list[str]:
    """A sentence behind its label, further lines indented; one line where `width` is None."""

    lines = (
        [text]
        if width is None
        else textwrap.wrap(text, max(40, width - 12), break_on_hyphens=False)
    )
    return [f"  {label if place == 0 else '':<9} {line}" for place, line in enumerate(lines)]
