"""`consentry schemas …`: check, publish, register and describe the Avro schemas.

They are described for others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from consentry.cli.connections import open_registry
from consentry.cli.golden_files import print_or_check
from consentry.cli.settings import load_settings
from consentry.schema_gate.asyncapi import asyncapi_text
from consentry.schema_gate.evolution import check_package, require_package
from consentry.schema_gate.evolution import publish as publish_in
from consentry.schema_gate.published import package_root
from consentry.wire.catalog import register_all

app = typer.Typer(
    name="schemas",
    help="Check, publish, register and describe the Avro schemas.",
    no_args_is_help=True,
    add_completion=False,
)


@app.command()
def lint() -> None:
    """Check the Avro schemas by every rule, and print what breaks one.

    The rules: protective defaults, safe enums, and whatever was published stays readable.

    Exit 0: all schemas keep them. 1: one does not.
    """

    findings = check_package()
    for finding in findings:
        typer.echo(str(finding))
    if not findings:
        typer.echo("all schemas are as they must be")
        raise typer.Exit(0)
    count = f"{len(findings)} findings"
    if len(findings) == 1:
        count = "1 finding"
    typer.echo(count)
    raise typer.Exit(1)


@app.command()
def publish(
    package: Annotated[
        Path | None,
        typer.Option(help="The data package to publish in; by default the installed one."),
    ] = None,
) -> None:
    """Publish each changed Avro schema file as its next version.

    It goes beside the earlier ones. Refused if a rule is broken.
    """
    written = publish_in(package or Path(str(package_root())))
    for file in written:
        typer.echo(str(file))
    if not written:
        typer.echo("nothing changed since the last published versions")


@app.command()
def register() -> None:
    """Register every schema at the registry, with FULL_TRANSITIVE compatibility.

    Each is registered for its topic. Producers and the processor never register schemas themselves.
    """
    require_package()
    settings = load_settings()
    for subject, schema_id in register_all(open_registry(settings), settings.namespace).items():
        typer.echo(f"{schema_id:>6}  {subject}")


@app.command()
def asyncapi(
    check: Annotated[
        Path | None,
        typer.Option(help="Compare with this file instead of printing; exit 1 if it differs."),
    ] = None,
) -> None:
    """Print the AsyncAPI document of topics and schemas, or compare it with a file.

    It is AsyncAPI 3.0.
    """
    print_or_check(asyncapi_text(), check, command="consentry schemas asyncapi")


@app.command()
def openapi(
    check: Annotated[
        Path | None, typer.Option(help="Compare with this file instead; exit 1 if it is behind.")
    ] = None,
) -> None:
    """Print the OpenAPI document of the gateway, or compare it with a file.

    It is OpenAPI 3.1.
    """
    from consentry.gateway.app import build_app  # noqa: PLC0415 - needs the extra gateway
    from consentry.gateway.http.openapi import openapi_text  # noqa: PLC0415 - needs the extra gateway

    print_or_check(openapi_text(build_app(None)), check, command="consentry schemas openapi")
