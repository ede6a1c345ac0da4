"""The demo, start to finish: start everything, tell the story, check it against the pure rules."""

from __future__ import annotations

import json
import os
import re
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import typer
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.table import Table
from rich.terminal_theme import SVG_EXPORT_THEME

from consentry.cli.demo.run import DemoRun
from consentry.cli.playground import surroundings
from consentry.local.supervisor import ended_by_signals

app = typer.Typer(add_completion=False)


EXIT_WRONG = 1


@app.command()
def run(
    members: Annotated[
        int, typer.Option(min=100, max=2_000_000, help="How many synthetic members.")
    ] = 20_000,
    as_json: Annotated[
        bool, typer.Option("--json", help="End with one line of JSON on standard output.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave everything running at the end, until Ctrl-C.")
    ] = False,
    directory: Annotated[
        Path,
        typer.Option("--dir", help="Where the demo's stack, data sets and logs are while it runs."),
    ] = Path(".consentry/demo"),
    picture: Annotated[
        Path | None, typer.Option(help="Also write what is shown to this SVG file.")
    ] = None,
) -> None:
    """Run the demo: consent events reach three training systems.

    It starts its own Kafka, Redis and schema registry (the first time it downloads about 200 MB),
    or uses those that CONSENTRY_KAFKA_BOOTSTRAP, CONSENTRY_REDIS_URL and CONSENTRY_REGISTRY_URL
    name, in a namespace of its own.

    Exit 0: every answer of every trainer was right. 1: one was wrong.
    """
    console = Console(
        stderr=as_json, highlight=False, record=picture is not None, width=124 if picture else None
    )
    started = monotonic()
    with ExitStack() as stack:
        settings, work = stack.enter_context(surroundings(directory, console, prefix="demo"))

        performance = stack.enter_context(DemoRun(settings, work, members=members, console=console))
        result = performance.play() | {"seconds": round(monotonic() - started, 1)}
        _show(console, performance, result)
        if picture is not None:
            console.save_svg(
                str(picture),
                title="make demo",
                theme=SVG_EXPORT_THEME,
                code_format=_svg_without_fonts(),
            )
        if as_json:
            typer.echo(json.dumps(result))
        if keep:
            console.print(
                "\nEverything goes on running until Ctrl-C. In another terminal:\n", style="bold"
            )
            console.print(performance.next_commands(), markup=False, soft_wrap=True)
            _wait_for_interrupt()
    raise typer.Exit(0 if result["ok"] else EXIT_WRONG)


def _svg_without_fonts() -> str:
    """rich's SVG template without the fonts it would load from elsewhere."""
    return re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)


def _show(console: Console, performance: DemoRun, result: dict[str, Any]) -> None:
    table = Table("promise", "measured", title="What the demo checked", title_justify="left")
    table.add_row(
        "rows and members answered as the rules say",
        f"{result['members']} members, {performance.findings.rows} rows",
    )
    table.add_row(
        "wrongly allowed / wrongly excluded",
        f"{result['wrong_allowed']} / {result['wrong_excluded']}",
    )
    left = result["rows_left_of_purged_members"]
    table.add_row("rows purged / left of purged members", f"{result['purged_rows']} / {left}")
    for name, title in (
        ("event_to_table_ms", "event → table, ms (p50, p99)"),
        ("event_to_trainer_ms", "event → trainer, ms (p50, p99)"),
        ("pause_to_trainer_ms", "pause → trainer, ms (p50, p99)"),
    ):
        table.add_row(title, f"{result[name]['p50']} , {result[name]['p99']}")
    console.print(table)
    for note in performance.findings.notes:
        console.print(f"  {note}", style="red", markup=False)
    decisions = (
        "[green]Everything is as the rules say.[/]"
        if result["ok"]
        else "[red]Something is not as the rules say.[/]"
    )
    console.print(f"{decisions} {result['seconds']} s in all.")


def _wait_for_interrupt() -> None:
    with ended_by_signals() as asked_to_end:
        parent = os.getppid()
        while not asked_to_end.wait(0.5) and os.getppid() == parent:
            pass
