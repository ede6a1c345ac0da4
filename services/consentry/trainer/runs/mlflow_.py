"""MLflow: tags of a training run, and its data set as an input, on the open MLflow run."""

from __future__ import annotations

import mlflow
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset

from consentry.trainer.runs.lineage import mlflow_digest, mlflow_tags
from consentry.trainer.runs.observers import RunChange


class MlflowObserver:
    """Tags the open MLflow run with what a training run does.

    It is the MLflow run that was open when this observer was made. Training code may close that
    run before the training run ends, or open another.
    """

    def __init__(self) -> None:
        run = mlflow.active_run()
        self._run_id: str | None = None
        if run is not None:
            self._run_id = run.info.run_id

    @staticmethod
    def has_open_run() -> bool:
        """Return True if there is an open MLflow run to tag."""
        return mlflow.active_run() is not None

    def on_run_event(self, run: RunChange) -> None:
        """Tag MLflow's run as the training run begins or ends; see RunObserver."""
        if self._run_id is None:
            return
        if run.state == "RUNNING" and self.has_open_run():
            # Only the training code knows where the data lies, so the source names our run, and the
            # digest the version.
            source = CodeDatasetSource(tags={"consentry.run_id": str(run.start["run_id"])})
            data = MetaDataset(source, name=str(run.start["dataset"]), digest=mlflow_digest(run))
            mlflow.log_input(data, context="training")
        client = mlflow.MlflowClient()
        for name, value in mlflow_tags(run).items():
            client.set_tag(self._run_id, name, value)
