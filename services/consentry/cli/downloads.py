"""The download of the local stack's programs by a command, once, with a progress bar."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from consentry.local.artifacts import fetch, load_lock


def default_cache() -> Path:
    """Return the directory of downloads if no option of the command names another."""
    cache_home = os.environ.get("XDG_CACHE_HOME")  # noqa: TID251 - the platform's own setting, not one of Consentry's
    if cache_home:
        return Path(cache_home) / "consentry"
    return Path.home() / ".cache" / "consentry"


def download_everything(
    cache: Path,
    *,
    repository: str | None,
    console: Console,
    say: Callable[[str], None],
    cancelled: threading.Event,
) -> None:
    """Download the local stack's programs with a progress bar in the terminal.

    Asks the network for nothing if all is in the cache. Raises LocalStackError.
    """

    with _download_bar(console) as progress:
        fetch(
            load_lock().everything,
            cache=cache,
            repository=repository,
            report=say,
            progress=progress,
            cancelled=cancelled,
        )


@contextmanager
def _download_bar(console: Console) -> Iterator[Callable[[int, int, str], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    bar = Progress(*columns, console=console)
    task = bar.add_task("Downloading Kafka and the registry", total=None)

    def show(done: int, total: int, _file_name: str) -> None:
        bar.start()  # does nothing the second time; with a full cache there is no bar at all
        bar.update(task, completed=done, total=total)

    try:
        yield show
    finally:
        if bar.live.is_started:
            bar.stop()
