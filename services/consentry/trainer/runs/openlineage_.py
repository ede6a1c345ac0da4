"""OpenLineage: the events START, and COMPLETE or FAIL, of a training run, with our own facet."""

from __future__ import annotations

import attr
from openlineage.client import OpenLineageClient
from openlineage.client.event_v2 import InputDataset, Job, Run, RunEvent, RunState
from openlineage.client.facet_v2 import (
    DatasetFacet,
    RunFacet,
    dataset_version_dataset,
    error_message_run,
)

from consentry.domain.wording import iso_text
from consentry.trainer.runs.lineage import FACET_KEY, FACET_SCHEMA_URL, PRODUCER, run_facet
from consentry.trainer.runs.observers import RunChange

_EVENTS = {"RUNNING": RunState.START, "COMPLETED": RunState.COMPLETE, "ABORTED": RunState.FAIL}


@attr.define(kw_only=True)
class ConsentryTrainingRunRunFacet(RunFacet):
    """OpenLineage's facet of a training run; see lineage.facet_schema."""

    runId: str
    state: str
    reason: str
    dataset: str
    datasetVersion: str
    purpose: str
    subscriber: str
    consentToken: str
    viewId: str
    url: str
    rowsRead: int | None = None
    rowsExcluded: int | None = None
    membersRead: int | None = None
    merkleRoot: str | None = None
    exclusionDigest: str | None = None
    limit: str | None = None

    @staticmethod
    def _get_schema() -> str:
        return FACET_SCHEMA_URL


class OpenLineageObserver:
    """Emits the beginnings and ends of training runs through an OpenLineage client.

    `namespace` is that of the job and of the data set. The job is named `job`, or else as the
    subscriber.
    """

    def __init__(
        self, client: OpenLineageClient, *, namespace: str = "consentry", job: str = ""
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._job = job

    def on_run_event(self, run: RunChange) -> None:
        """Emit that a training run began or ended; see RunObserver."""
        self._client.emit(self.event(run))

    def event(self, run: RunChange) -> RunEvent:
        """Return the OpenLineage event for a training run's beginning or end."""
        facets: dict[str, RunFacet] = {
            FACET_KEY: ConsentryTrainingRunRunFacet(**run_facet(run) | {"producer": PRODUCER}),
        }
        if run.reason:
            facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(
                message=run.reason, programmingLanguage="python", producer=PRODUCER
            )
        version = str(run.start["dataset_version"])
        dataset_facets: dict[str, DatasetFacet] = {}
        if version:
            dataset_facets["version"] = dataset_version_dataset.DatasetVersionDatasetFacet(
                datasetVersion=version, producer=PRODUCER
            )
        dataset = InputDataset(
            namespace=self._namespace, name=str(run.start["dataset"]), facets=dataset_facets
        )
        return RunEvent(
            eventType=_EVENTS[run.state],
            eventTime=iso_text(run.at),
            producer=PRODUCER,
            run=Run(runId=str(run.start["run_id"]), facets=facets),
            job=Job(namespace=self._namespace, name=self._job or str(run.start["subscriber"])),
            inputs=[dataset],
        )
