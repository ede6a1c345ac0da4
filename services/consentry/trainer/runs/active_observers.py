"""Which lineage services a program uses already: these are told of its runs without being named."""

from __future__ import annotations

import sys

from consentry.trainer.runs.observers import RunObserver


def active_watchers() -> list[RunObserver]:
    """MLflow, where the program has a run of it open. Imports no library that the program has
    not.
    """
    if "mlflow" not in sys.modules:
        return []
    from consentry.trainer.runs.mlflow_ import MlflowObserver  # noqa: PLC0415 - it imports mlflow

    return [MlflowObserver()] if MlflowObserver.has_open_run() else []
