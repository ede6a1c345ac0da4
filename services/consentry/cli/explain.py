"""`consentry explain`: why a member's data may or may not be used, now or then."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from consentry.domain.errors import Unavailable

if TYPE_CHECKING:
    from consentry.domain.controls import Controls
    from consentry.domain.decisions import Decision
    from consentry.domain.records import Record
    from consentry.domain.values import Micros
    from consentry.ops.settings import Settings


def run(
    member: Annotated[str, typer.Argument(help="Pseudonym of the member.")],
    purpose: Annotated[str, typer.Option(help="What the data would be used for.")] = "genai_training",
    at: Annotated[str | None, typer.Option(help="When it would be used, ISO 8601; default: now.")] = None,
    known_at: Annotated[str | None, typer.Option("--known-at", help="By what was recorded then; default: now.")] = None,
    jurisdiction: Annotated[str | None, typer.Option(help="Where the row comes from.")] = None,
    category: Annotated[str | None, typer.Option(help="The row's data category.")] = None,
    collected: Annotated[str | None, typer.Option(help="When the row was collected, ISO 8601.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Say whether a member's data may be used for a purpose, and why; exit 2 where that cannot be told."""
    from consentry.cli.wiring import load_settings, read_controls
    from consentry.domain.controls import Controls
    from consentry.domain.decisions import Row, decide
    from consentry.domain.values import parse_member_id, parse_name
    from consentry.ops.clock import system_clock
    from consentry.wire.forms import parse_instant
    from consentry.wire.jurisdictions import iso_jurisdictions

    parse_member_id(member)
    parse_name(purpose, what="purpose")
    now = system_clock()
    asked_at = now if at is None else parse_instant(at, what="--at")
    asked_known_at = now if known_at is None else parse_instant(known_at, what="--known-at")
    row = None
    if jurisdiction or category or collected:
        when = None if collected is None else parse_instant(collected, what="--collected")
        row = Row(jurisdiction=jurisdiction, category=category, collected=when)
    settings = load_settings()
    record = read_member(settings, member)
    controls = Controls(iso_jurisdictions()).after(*read_controls(settings))
    decision = decide(record, row, controls, purpose=purpose, at=asked_at, known_at=asked_known_at)
    answer = _answer(member, purpose, asked_at, asked_known_at, decision, record)
    if as_json:
        typer.echo(json.dumps(answer))
    else:
        _print(answer, record, controls)


def read_member(settings: Settings, member: str) -> Record | None:
    """The member's record, from the table. Raises Unavailable where the table cannot be trusted to be whole."""
    from consentry.cli.wiring import count_partitions, open_table
    from consentry.ops.clock import system_clock
    from consentry.wire.partitions import partition_of
    from consentry.wire.records import read_record

    partitions = count_partitions(settings)
    key = member.encode()
    home = partition_of(key, partitions)
    with open_table(settings, partitions) as table:
        meta = table.meta(home)
        if meta.generation is None or meta.frontier_at is None:
            raise Unavailable(
                f"Partition {home} of the table, where this member belongs, is not built.",
                code="table.not_built",
                fix="start the processor; it builds what is missing, then ask again",
            )
        age = (system_clock() - meta.frontier_at) / 1e6
        if age > settings.staleness_seconds:
            raise Unavailable(
                f"Partition {home} of the table is {age:.0f} s old; the bound is {settings.staleness_seconds:g} s.",
                code="table.stale",
                fix="check that the processor runs and is ready (/readyz), then ask again",
            )
        if meta.tainted:
            raise Unavailable(
                f"Partition {home} is tainted: one of its events has no readable key, so it gives no answer.",
                code="table.tainted",
                fix="see deploy/runbooks/ConsentryPartitionTainted.md",
            )
        raw = table.load(home, [key])[0]
        foreign = any(table.load(other, [key])[0] for other in range(partitions) if other != home)
        if foreign:
            raise Unavailable(
                "Events of this member also came on a foreign partition, so they have no order: the member is held.",
                code="member.misplaced",
                fix="give the producer the murmur2 partitioner",
            )
    return None if raw is None else read_record(raw, key)


def _answer(
    member: str, purpose: str, at: Micros, known_at: Micros, decision: Decision, record: Record | None
) -> dict[str, Any]:
    from consentry.domain.explain import sentences
    from consentry.wire.forms import moment

    return {
        "member": member,
        "purpose": purpose,
        "at": moment(at).isoformat(),
        "known_at": moment(known_at).isoformat(),
        "allowed": decision.allowed,
        "reason": decision.reason.value,
        "because": list(sentences(decision)),
        "version": record.version if record else None,
    }


def _print(answer: dict[str, Any], record: Record | None, controls: Controls) -> None:
    from rich.console import Console

    from consentry.domain.decisions import Ground
    from consentry.domain.explain import sentence
    from consentry.domain.values import Reason

    console = Console(highlight=False, soft_wrap=True)
    outcome = "[green]ALLOWED[/]" if answer["allowed"] else "[red]EXCLUDED[/]"
    console.print(f"{outcome}  {answer['reason']}  {answer['purpose']} at {answer['at']}")
    for line in answer["because"]:
        console.print(f"  because  {line}", markup=False)
    if record is None:
        console.print("  record   none: nothing was ever recorded of this member", markup=False)
    for fact in record.facts if record else ():
        console.print(f"  fact {fact.version:>3}  {sentence(Ground(Reason.HELD, fact))}", markup=False)
    console.print(f"  controls read: {len(controls.log)}", markup=False)
