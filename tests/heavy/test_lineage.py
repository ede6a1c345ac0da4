"""Training runs in lineage services, by the real libraries: an OpenLineage file, an MLflow
store.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012
from tests.unit.trainer.runs.conftest import SmallWorld

from consentry.trainer.runs import LeaseRevoked
from consentry.trainer.runs.lineage import FACET_KEY, FACET_SCHEMA_URL, facet_schema

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

BATCH = pa.table({"member_id": ["a", "b", None], "jurisdiction": ["US"] * 3})


@pytest.fixture
def small() -> SmallWorld:
    """A small world."""
    return SmallWorld()


class TestOpenLineage:
    """What a lineage service hears."""

    @pytest.fixture
    def events(self, tmp_path: Path) -> Iterator[Any]:
        """An observer that writes to a file, and what reads it."""
        from openlineage.client import OpenLineageClient
        from openlineage.client.transport.file import FileConfig, FileTransport

        from consentry.trainer.runs.openlineage_ import OpenLineageObserver

        log = tmp_path / "events.jsonl"
        client = OpenLineageClient(
            transport=FileTransport(FileConfig(log_file_path=str(log), append=True))
        )

        def read() -> list[dict[str, Any]]:
            return [json.loads(line) for line in log.read_text().splitlines()]

        yield OpenLineageObserver(client), read
        client.close()

    def test_a_run_is_told_at_its_start_and_its_end(
        self, small: SmallWorld, tmp_path: Path, events: Any
    ) -> None:
        """A model's lineage that leaves out what its data was allowed for answers no authority."""
        observer, read = events
        small.opt_out("b")
        with small.run(tmp_path / "runs", observers=[observer], dataset_version="v7") as run:
            run.filter(BATCH)
        start, end = read()
        assert (start["eventType"], end["eventType"]) == ("START", "COMPLETE")
        for event in (start, end):
            assert event["run"]["runId"] == run.run_id
            assert (event["job"]["name"], event["inputs"][0]["name"]) == ("ranker", "posts")
            assert event["inputs"][0]["facets"]["version"]["datasetVersion"] == "v7"
        facet = end["run"]["facets"][FACET_KEY]
        assert (facet["rowsRead"], facet["rowsExcluded"], facet["membersRead"]) == (1, 2, 1)
        assert facet["_schemaURL"] == FACET_SCHEMA_URL
        assert run.certificate is not None
        assert facet["merkleRoot"] == run.certificate["reads"]["merkle_root"]

    def test_a_run_that_was_stopped_is_told_as_failed_with_its_reason(
        self, small: SmallWorld, tmp_path: Path, events: Any
    ) -> None:
        """Who looks for the model's data finds an epoch that was never finished."""
        observer, read = events
        with pytest.raises(LeaseRevoked), small.run(tmp_path / "runs", observers=[observer]) as run:  # noqa: PT012
            run.revoke("overdue")
            run.filter(BATCH)
        assert [event["eventType"] for event in read()] == ["START", "FAIL"]
        assert "overdue" in read()[1]["run"]["facets"]["errorMessage"]["message"]

    def test_the_facet_is_as_its_schema_says(
        self, small: SmallWorld, tmp_path: Path, events: Any
    ) -> None:
        """A facet that others cannot read is noise in their catalogues."""
        observer, read = events
        with small.run(tmp_path / "runs", observers=[observer]) as run:
            run.filter(BATCH)
        schema = facet_schema()
        base = {"$defs": {"RunFacet": {"type": "object", "required": ["_producer", "_schemaURL"]}}}
        url = schema["$defs"]["ConsentryTrainingRunRunFacet"]["allOf"][0]["$ref"].partition("#")[0]
        registry: Any = Registry().with_resource(url, DRAFT202012.create_resource(base))
        validator = Draft202012Validator(schema, registry=registry)
        told = [event["run"]["facets"] for event in read()]
        for facets in told:
            validator.validate(facets)
        properties = schema["$defs"]["ConsentryTrainingRunRunFacet"]["allOf"][1]["properties"]
        assert set(told[1][FACET_KEY]) - {"_producer", "_schemaURL"} == set(properties)

    def test_a_lineage_service_that_fails_does_not_stop_training(
        self, small: SmallWorld, tmp_path: Path
    ) -> None:
        """It has no say in what may be read."""

        class Broken:
            def on_run_event(self, run: Any) -> None:
                raise OSError("away")

        with small.run(tmp_path, observers=[Broken()]) as run:
            assert run.filter(BATCH).num_rows == 2
        assert run.state == "COMPLETED"


class TestMlflow:
    """What stands beside a model."""

    def test_the_open_run_carries_data_set_token_and_counts(
        self, small: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Who finds a model in the registry has to find what it was allowed to read."""
        import mlflow

        from consentry.trainer.runs.mlflow_ import MlflowObserver

        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        mlflow.set_tracking_uri(f"file://{tmp_path}/mlruns")
        assert not MlflowObserver.has_open_run()
        outer = mlflow.start_run()
        with small.run(
            tmp_path / "runs", observers=[MlflowObserver()], dataset_version="sha256:" + "a" * 64
        ) as run:
            run.filter(BATCH)
        mlflow.end_run()
        found = mlflow.MlflowClient().get_run(outer.info.run_id)
        tags = {
            name: value for name, value in found.data.tags.items() if name.startswith("consentry.")
        }
        assert tags["consentry.run_id"] == run.run_id
        assert tags["consentry.state"] == "COMPLETED"
        assert (tags["consentry.rows_read"], tags["consentry.rows_excluded"]) == ("2", "1")
        assert tags["consentry.consent_token"]
        assert found.inputs is not None
        (data,) = found.inputs.dataset_inputs
        assert (data.dataset.name, len(data.dataset.digest)) == ("posts", 36)
        assert data.tags[0].value == "training"
