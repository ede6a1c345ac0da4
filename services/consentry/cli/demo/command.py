"""`consentry demo`: starts everything, plays the story, and checks it against the pure rules."""

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

from consentry.cli.demo import texts
from consentry.cli.demo.run import DemoRun
from consentry.cli.playground import playground
from consentry.local.supervisor import ended_by_signals

app = typer.Typer(add_completion=False)


EXIT_WRONG = 1
PICTURE_COLUMNS = 124


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
        Path | None, typer.Option(help="Also write what is shown to this file, as SVG.")
    ] = None,
) -> None:
    """Run the demo: consent events reach three training systems.

    It starts its own Kafka, Redis and schema registry (the first time it downloads about 200 MB),
    or uses those that CONSENTRY_KAFKA_BOOTSTRAP, CONSENTRY_REDIS_URL and CONSENTRY_REGISTRY_URL
    name, in a namespace of its own.

    Exit 0: every answer of every trainer was right. 1: one was wrong.
    """
    console = Console(stderr=as_json, highlight=False)
    if picture is not None:
        console = Console(stderr=as_json, highlight=False, record=True, width=PICTURE_COLUMNS)
    # How the stack starts, with its ports, is no part of the picture.
    start_console = Console(stderr=as_json, highlight=False)
    started = monotonic()
    with ExitStack() as stack:
        settings, work = stack.enter_context(playground(directory, start_console, prefix="demo"))
        demo = stack.enter_context(DemoRun(settings, work, members=members, console=console))
        result = demo.play() | {"seconds": round(monotonic() - started, 1)}
        _show(console, demo, result)
        if picture is not None:
            write_picture(console, picture)
        if as_json:
            typer.echo(json.dumps(result))
        if keep:
            console.print(
                "\nEverything goes on running until Ctrl-C. In another terminal:\n", style="bold"
            )
            console.print(demo.next_commands(), markup=False, soft_wrap=True)
            _wait_for_interrupt()
    if result["ok"]:
        raise typer.Exit(0)
    raise typer.Exit(EXIT_WRONG)


def write_picture(console: Console, file: Path) -> None:
    """Write all that `consentry demo` has printed on its console as an SVG file.

    Its ids and fonts are the same each time, so that only what was printed makes a difference.
    """
    console.save_svg(
        str(file),
        title="make demo",
        theme=SVG_EXPORT_THEME,
        code_format=_svg_without_fonts(),
        unique_id="demo",
    )


def _svg_without_fonts() -> str:
    """Return rich's SVG template without the fonts that it would load from the network."""
    return re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)


def _show(console: Console, demo: DemoRun, result: dict[str, Any]) -> None:
    table = Table("promise", "measured", title=texts.RESULT_TITLE, title_justify="left")
    for promise, measured in texts.result_rows(result, rows=demo.findings.rows):
        table.add_row(promise, measured)
    console.print(table)
    for note in demo.findings.notes:
        console.print(f"  {note}", style="red", markup=False)
    outcome = f"[red]{texts.WRONG}[/]"
    if result["ok"]:
        outcome = f"[green]{texts.RIGHT}[/]"
    console.print(f"{outcome} {result['seconds']} s in all.")


def _wait_for_interrupt() -> None:
    with ended_by_signals() as asked_to_end:
        parent = os.getppid()
        while not asked_to_end.wait(0.5) and os.getppid() == parent:
            pass
