"""`consentry topics …`: create the topics as declared, and show where a broker differs."""

from __future__ import annotations

import typer

app = typer.Typer(
    name="topics",
    help="Create the topics as declared; show where a broker differs.",
    no_args_is_help=True,
)


@app.command()
def diff() -> None:
    """Show what differs from the declaration; exit 1 if anything does, 2 if mending it would lose
    data.
    """
    from consentry.cli.connections import load_settings
    from consentry.kafka.topics import plan_topics

    settings = load_settings()
    plan = plan_topics(settings.kafka(), namespace=settings.namespace, profile=settings.profile)
    for step in plan:
        typer.echo(str(step))
    if not plan:
        typer.echo("all topics are as declared")
    raise typer.Exit(2 if any(step.loses_data for step in plan) else 1 if plan else 0)


@app.command()
def apply() -> None:
    """Create and mend the topics.

    Refuses, before changing anything, where that would lose data or order.
    """
    from consentry.cli.connections import load_settings
    from consentry.kafka.topics import apply_topics, plan_topics

    settings = load_settings()
    plan = plan_topics(settings.kafka(), namespace=settings.namespace, profile=settings.profile)
    for step in apply_topics(settings.kafka(), plan, profile=settings.profile):
        typer.echo(str(step))
    if not plan:
        typer.echo("all topics are as declared")
