"""`consentry schemas …`: check the Avro schemas, and register them."""

from __future__ import annotations

import typer

app = typer.Typer(name="schemas", help="Check the Avro schemas, and register them.", no_args_is_help=True)


@app.command()
def lint() -> None:
    """Check that defaults are protective, enums safe, and every field documented; exit 1 if any rule is broken."""
    from consentry.wire.lint import lint_package

    findings = lint_package()
    for finding in findings:
        typer.echo(str(finding))
    typer.echo(f"{len(findings)} findings" if findings else "all schemas are as they must be")
    raise typer.Exit(1 if findings else 0)


@app.command()
def register() -> None:
    """Register every schema for its topic, FULL_TRANSITIVE; producers and the processor never do this themselves."""
    from consentry.cli.wiring import load_settings, open_registry
    from consentry.wire.catalog import register_all

    settings = load_settings()
    for subject, schema_id in register_all(open_registry(settings), settings.namespace).items():
        typer.echo(f"{schema_id:>6}  {subject}")
