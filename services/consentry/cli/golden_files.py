"""Files that a command generates and that are kept beside the code: printed, or compared."""

from __future__ import annotations

import difflib
from pathlib import Path

import typer

from consentry.domain.errors import InvalidInput

_DIFFERENCES_SHOWN = 40


def print_or_check(text: str, file: Path | None, *, command: str) -> None:
    """Print the text that a command generates, or compare it with `file`; exit 1 if they differ.

    It shows where they differ. `command` makes the file, such as `consentry schemas asyncapi`.
    Raises InvalidInput where the file cannot be read.
    """
    if file is None:
        typer.echo(text, nl=False)
        return
    try:
        kept_text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"{file} cannot be compared: {error}.",
            code="input.file",
            fix=f"make it by `{command} > {file}`",
        ) from error
    if kept_text == text:
        typer.echo(f"{file} is what `{command}` makes")
        return
    lines = list(
        difflib.unified_diff(
            kept_text.splitlines(), text.splitlines(), str(file), "now", lineterm="", n=1
        )
    )
    for line in lines[:_DIFFERENCES_SHOWN]:
        typer.echo(line)
    if len(lines) > _DIFFERENCES_SHOWN:
        typer.echo(f"… and {len(lines) - _DIFFERENCES_SHOWN} lines more")
    typer.echo(f"{file} is behind; make it anew by `{command} > {file}`")
    raise typer.Exit(1)
