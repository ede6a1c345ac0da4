"""What other systems are told of a training run: a run facet for OpenLineage, tags for MLflow.

Pure functions.

`integrations/openlineage_.py` and `integrations/mlflow_.py` send them. No member ids in either.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

from consentry.domain.values import Reason
from consentry.trainer.runs.observers import RunChange

FACET_KEY: Final = "consentry_trainingRun"
"""The facet's name: our own prefix, as OpenLineage asks of facets that are not its own."""
FACET_SCHEMA_URL: Final = "urn:consentry:openlineage:1-0-0#/$defs/ConsentryTrainingRunRunFacet"
"""Names the schema's version; `facet_schema` is the schema. It changes whenever a field does."""
PRODUCER: Final = "urn:consentry"
TAG_PREFIX: Final = "consentry."
TAG_LENGTH_MAX: Final = 5000
_DIGEST_LENGTH_MAX: Final = 36
"""MLflow takes no longer digest of a data set."""

_TEXT: Final = {"type": "string"}
_NUMBER: Final = {"type": "integer"}
_FIELDS: Final[Mapping[str, Any]] = {
    "runId": _TEXT,
    "state": {"enum": ["RUNNING", "COMPLETED", "ABORTED"]},
    "reason": _TEXT,
    "dataset": _TEXT,
    "datasetVersion": _TEXT,
    "purpose": _TEXT,
    "subscriber": _TEXT,
    "consentToken": _TEXT,
    "viewId": _TEXT,
    "url": _TEXT,
    "rowsRead": _NUMBER,
    "rowsExcluded": _NUMBER,
    "membersRead": _NUMBER,
    "merkleRoot": _TEXT,
    "exclusionDigest": _TEXT,
    "limit": _TEXT,
}


def run_facet(told: RunChange) -> dict[str, Any]:
    """The fields of the facet; those of the certificate only once there is one."""
    start, certificate = told.start, told.certificate
    found = {
        "runId": start["run_id"],
        "state": told.state,
        "reason": told.reason,
        "dataset": start["dataset"],
        "datasetVersion": start["dataset_version"],
        "purpose": start["purpose"],
        "subscriber": start["subscriber"],
        "consentToken": start["token_start"] if certificate is None else certificate["token_end"],
        "viewId": start["view_start"] if certificate is None else certificate["view_end"],
        "url": told.url,
    }
    if certificate is not None:
        found |= {
            "rowsRead": certificate["rows_read"],
            "rowsExcluded": rows_excluded(certificate),
            "membersRead": certificate["members_read"],
            "merkleRoot": certificate["reads"]["merkle_root"],
            "exclusionDigest": certificate["exclusions"]["digest"],
            "limit": certificate["limit"],
        }
    return found


def facet_schema() -> dict[str, Any]:
    """The JSON Schema of the facet, as OpenLineage's own facets have theirs."""
    own = {
        "type": "object",
        "properties": dict(_FIELDS),
        "required": ["runId", "state", "dataset", "purpose"],
    }
    base = {"$ref": "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunFacet"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": FACET_SCHEMA_URL.partition("#")[0],
        "$defs": {"ConsentryTrainingRunRunFacet": {"allOf": [base, own], "type": "object"}},
        "type": "object",
        "properties": {FACET_KEY: {"$ref": "#/$defs/ConsentryTrainingRunRunFacet"}},
    }


def mlflow_tags(told: RunChange) -> dict[str, str]:
    """The tags of an MLflow run; a text that is too long for one stands there as its digest."""
    named = {_snake(name): value for name, value in run_facet(told).items() if value != ""}
    return {TAG_PREFIX + name: _short(str(value), TAG_LENGTH_MAX) for name, value in named.items()}


def mlflow_digest(told: RunChange) -> str:
    """What names the version of the data set:

    36 characters at most; where none was told, the run stands for it.
    """
    return _short(str(told.start["dataset_version"] or told.start["run_id"]), _DIGEST_LENGTH_MAX)


def rows_excluded(certificate: Mapping[str, Any]) -> int:
    """How many rows were left out."""
    allowing = [reason.value for reason in Reason if reason.allows]
    return sum(number for reason, number in certificate["counts"].items() if reason not in allowing)


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


def _short(text: str, length_max: int) -> str:
    return (
        text if len(text) <= length_max else hashlib.sha256(text.encode()).hexdigest()[:length_max]
    )
