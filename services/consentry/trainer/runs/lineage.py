"""The description of a training run for other systems: OpenLineage's facet and MLflow's tags.

Pure functions; openlineage_.py and mlflow_.py send what they return. It holds no member ids.
"""

from __future__ import annotations

import hashlib
import re
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
"""The longest digest of a data set that MLflow takes."""
_ALLOWING: Final = frozenset(reason.value for reason in Reason if reason.allows)

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


def run_facet(change: RunChange) -> dict[str, Any]:
    """Return the fields of a training run's OpenLineage facet.

    Those of the certificate are there only once there is one.
    """
    start, certificate = change.start, change.certificate
    if certificate is None:
        token = start["token_start"]
        view_id = start["view_start"]
    else:
        token = certificate["token_end"]
        view_id = certificate["view_end"]
    facet = {
        "runId": start["run_id"],
        "state": change.state,
        "reason": change.reason,
        "dataset": start["dataset"],
        "datasetVersion": start["dataset_version"],
        "purpose": start["purpose"],
        "subscriber": start["subscriber"],
        "consentToken": token,
        "viewId": view_id,
        "url": change.url,
    }
    if certificate is not None:
        facet |= {
            "rowsRead": certificate["rows_read"],
            "rowsExcluded": rows_excluded(certificate),
            "membersRead": certificate["members_read"],
            "merkleRoot": certificate["reads"]["merkle_root"],
            "exclusionDigest": certificate["exclusions"]["digest"],
            "limit": certificate["limit"],
        }
    return facet


def facet_schema() -> dict[str, Any]:
    """Return the JSON Schema of a training run's facet, in the form of OpenLineage's own."""
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


def mlflow_tags(change: RunChange) -> dict[str, str]:
    """Return the MLflow tags of a training run; too long a text becomes its digest."""
    tags = {}
    for name, value in run_facet(change).items():
        if value != "":
            tags[TAG_PREFIX + _snake_case(name)] = _shorten(str(value), TAG_LENGTH_MAX)
    return tags


def mlflow_digest(change: RunChange) -> str:
    """Return MLflow's digest of a training run's data set: its version, 36 characters at most.

    The id of the run where the data set has no version.
    """
    version = change.start["dataset_version"] or change.start["run_id"]
    return _shorten(str(version), _DIGEST_LENGTH_MAX)


def rows_excluded(certificate: Mapping[str, Any]) -> int:
    """Return how many rows a training run left out, for its lineage."""
    excluded = 0
    for reason, rows in certificate["counts"].items():
        if reason not in _ALLOWING:
            excluded += rows
    return excluded


def _snake_case(name: str) -> str:
    return re.sub("[A-Z]", lambda match: f"_{match[0].lower()}", name)


def _shorten(text: str, length_max: int) -> str:
    if len(text) <= length_max:
        return text
    return hashlib.sha256(text.encode()).hexdigest()[:length_max]
