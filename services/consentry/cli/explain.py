"""`consentry explain`: why a member's data may or may not be used, now or at another time."""

from __future__ import annotations

import json
import textwrap
from typing import Annotated

import typer
from rich.console import Console

from consentry.cli.connections import read_controls
from consentry.cli.consent_table import read_member
from consentry.cli.options import JsonOption, MemberArgument
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
    member: MemberArgument,
    purpose: Annotated[
        str, typer.Option(help="What the data would be used for.")
    ] = "genai_training",
    at: Annotated[
        str | None, typer.Option(help="When it would be used, in ISO 8601; default: now.")
    ] = None,
    known_at: Annotated[
        str | None,
        typer.Option(
            "--known-at", help="Count only what was recorded by then, in ISO 8601; default: now."
        ),
    ] = None,
    jurisdiction: Annotated[
        str | None, typer.Option(help="Jurisdiction of the row, such as HK.")
    ] = None,
    category: Annotated[str | None, typer.Option(help="Data category of the row.")] = None,
    collected: Annotated[
        str | None, typer.Option(help="When the row was collected, in ISO 8601.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Explain why a member's data may or may not be used.

    Exit 0: answered, whatever the answer is. 2: cannot tell.
    """
    parse_member_id(member)
    parse_name(purpose, what="purpose")
    now = system_clock()
    at_instant = now
    if at is not None:
        at_instant = parse_instant(at, what="--at")
    known_at_instant = now
    if known_at is not None:
        known_at_instant = parse_instant(known_at, what="--known-at")
    row = _row(jurisdiction, category, collected)
    settings = load_settings()
    record = read_member(settings, member)
    controls = Controls(iso_jurisdictions()).after(*read_controls(settings))
    question = ExplainQuestion(
        record=record,
        row=row,
        controls=controls,
        purpose=purpose,
        at=at_instant,
        known_at=known_at_instant,
    )
    explanation = explain(question, name_of)
    if as_json:
        fields = {"member": member, **as_data(explanation), "controls": len(controls.log)}
        typer.echo(json.dumps(fields))
    else:
        _print(member, explanation)


def _row(jurisdiction: str | None, category: str | None, collected: str | None) -> Row | None:
    """Return the row of the question, or None where no option describes one."""
    if jurisdiction is None and category is None and collected is None:
        return None
    collected_at = None
    if collected is not None:
        collected_at = parse_instant(collected, what="--collected", at_any_time=True)
    return Row(jurisdiction=jurisdiction, category=category, collected=collected_at)


def _print(member: str, explanation: Explanation) -> None:
    """Print the answer for a person: wrapped on a terminal, elsewhere one line a sentence."""

    asked, decision = explanation.asked, explanation.decision
    console = Console(highlight=False, soft_wrap=True)
    outcome = "[bold red]EXCLUDED[/]"
    if decision.allowed:
        outcome = "[bold green]ALLOWED[/]"
    console.print(f"{outcome}  {decision.reason.value}")
    sentences = [
        ("", f"{member}, {asked.purpose}, {_row_text(asked.row)}"),
        ("", f"at {date_text(asked.at)}, by what was known on {date_text(asked.known_at)}"),
    ]
    label = "because"
    for text in explanation.because:
        sentences.append((label, text))
        label = ""
    if asked.record is None:
        sentences.append(("record", "none"))
    for note in explanation.facts:
        sentences.append((f"fact {note.fact.version}", _note_text(note)))
    sentences.append(("controls", f"{len(asked.controls.log)} read"))
    width = None
    if console.is_terminal:
        width = console.width
    for label, text in sentences:
        for line in _lines(label, text, width):
            console.print(line, markup=False)


def _row_text(row: Row | None) -> str:
    """Return the part of the question that is not the member."""
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
    """Return a fact, and whether it counts."""
    if note.why_not:
        return f"{note.text} [not counted: {note.why_not}]"
    if note.replaced_by:
        return f"{note.text} [replaced by fact {note.replaced_by}]"
    return note.text


def _lines(label: str, text: str, width: int | None) -> list[str]:
    """Return a sentence behind its label, wrapped to `width`; one line where it is None."""

    lines = [text]
    if width is not None:
        lines = textwrap.wrap(text, max(40, width - 12), break_on_hyphens=False)
    first, *further = lines
    return [f"  {label:<9} {first}", *(f"  {'':<9} {line}" for line in further)]
