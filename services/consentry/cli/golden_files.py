"""Files that are made by a command and kept beside the code: printed, or compared with what the
code says now.
"""

from __future__ import annotations

import difflib
from pathlib import Path

import typer

from consentry.domain.errors import InvalidInput

_DIFFERENCES_SHOWN = 40


def print_or_check(made: str, file: Path | None, *, command: str) -> None:
    """Print `made`, or compare it with `file`: exit 1, showing how they differ, if the file is
    behind.

    `command` is what makes the file, such as `consentry schemas asyncapi`. A file that is not there
    or cannot be read raises InvalidInput.
    """
    if file is None:
        typer.echo(made, nl=False)
        return
    try:
        kept = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"{file} cannot be compared: {error}.",
            code="input.file",
            fix=f"make it by `{command} > {file}`",
        ) from error
    if kept == made:
        typer.echo(f"{file} is what `{command}` makes")
        return
    lines = list(
        difflib.unified_diff(
            kept.splitlines(), made.splitlines(), str(file), "now", lineterm="", n=1
        )
    )
    for line in lines[:_DIFFERENCES_SHOWN]:
        typer.echo(line)
    if len(lines) > _DIFFERENCES_SHOWN:
        typer.echo(f"… and {len(lines) - _DIFFERENCES_SHOWN} lines more")
    typer.echo(f"{file} is behind; make it anew by `{command} > {file}`")
    raise typer.Exit(1)
