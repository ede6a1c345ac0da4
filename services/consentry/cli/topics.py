"""`consentry topics …`: create the topics as declared, and show where a broker differs."""

from __future__ import annotations

import typer

from consentry.cli.settings import load_settings
from consentry.kafka.topics import apply_topics, plan_topics

app = typer.Typer(
    name="topics",
    help="Create the declared topics, and show where a broker differs.",
    no_args_is_help=True,
    add_completion=False,
)


@app.command()
def diff() -> None:
    """Print where the broker's topics differ from the declared ones.

    Exit 0: nowhere. 1: somewhere. 2: somewhere, and mending it would lose data.
    """
    settings = load_settings()
    plan = plan_topics(settings.kafka(), namespace=settings.namespace, profile=settings.profile)
    for step in plan:
        typer.echo(str(step))
    if not plan:
        typer.echo("all topics are as declared")
        raise typer.Exit(0)
    if any(step.loses_data for step in plan):
        raise typer.Exit(2)
    raise typer.Exit(1)


@app.command()
def apply() -> None:
    """Create the declared topics at the broker, and mend those that differ.

    Where that would lose data or order, it refuses before it changes anything.
    """
    settings = load_settings()
    plan = plan_topics(settings.kafka(), namespace=settings.namespace, profile=settings.profile)
    for step in apply_topics(settings.kafka(), plan, profile=settings.profile):
        typer.echo(str(step))
    if not plan:
        typer.echo("all topics are as declared")
