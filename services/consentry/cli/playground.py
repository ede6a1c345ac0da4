"""A stack for a command to try things on: the named one, the running one, or one of its own."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from consentry.cli.downloads import default_cache, download_everything
from consentry.cli.settings import load_settings
from consentry.local.stack import LocalStack, already_running
from consentry.local.state import read_state
from consentry.local.supervisor import ended_by_signals
from consentry.ops.settings import Settings


@contextmanager
def playground(
    directory: Path, console: Console, *, prefix: str, use_running: bool = False
) -> Iterator[tuple[Settings, Path]]:
    """Give a command settings for a stack to try things on, and a directory, gone afterwards.

    The settings have a namespace of their own. A stack of our own lives in `directory`; its data
    goes with it. `use_running` takes the local stack that runs, if one does, instead. Raises
    LocalStackError, Refused or Unavailable.
    """
    settings = Settings.parse()
    namespace = f"{prefix}-{uuid.uuid4().hex[:8]}"
    named = None
    if use_running:
        named = _running(settings)
    if settings.kafka_bootstrap and settings.redis_url.get_secret_value() and settings.registry_url:
        named = settings
    if named is not None:
        console.print(f"Using the given Kafka at {named.kafka_bootstrap}, namespace {namespace}.")
        work = Path(tempfile.mkdtemp(prefix=f"consentry-{prefix}-"))
        try:
            yield named.model_copy(update={"namespace": namespace}), work
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return
    with _own_stack(settings, directory, console) as own:
        work = directory.absolute() / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            yield own, work
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _running(settings: Settings) -> Settings | None:
    """Settings of the local stack that runs here, if one does and nothing else is named."""
    state = read_state(settings.local_dir)
    if state is None or state.addresses is None:
        return None
    return load_settings()


@contextmanager
def _own_stack(settings: Settings, directory: Path, console: Console) -> Iterator[Settings]:
    if read_state(directory) is not None:
        raise already_running(directory)
    cache = (settings.cache_dir or default_cache()).absolute()

    def say(line: str) -> None:
        console.print(f"  {line}", style="dim", markup=False)

    with ended_by_signals() as stop_requested:
        download_everything(
            cache, repository=None, console=console, say=say, cancelled=stop_requested
        )
        console.print("Starting Kafka, Redis and the schema registry …")
        local = LocalStack(
            directory, cache=cache, ephemeral=True, report=say, cancelled=stop_requested
        )
        addresses = local.start()
    try:
        yield Settings.parse(
            {
                "kafka_bootstrap": addresses.kafka,
                "redis_url": addresses.redis_url,
                "registry_url": addresses.registry_url,
                "profile": "local",
                "namespace": settings.namespace,
                "local_dir": directory,
            }
        )
    finally:
        local.stop()
