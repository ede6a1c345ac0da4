"""A client of a Confluent-compatible schema registry over HTTP."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from confluent_kafka.schema_registry import (
    ConfigCompatibilityLevel,
    SchemaRegistryClient,
    ServerConfig,
)
from confluent_kafka.schema_registry import Schema as RemoteSchema
from confluent_kafka.schema_registry.error import SchemaRegistryError

from consentry.domain.errors import Refused, Unavailable
from consentry.wire.schemas import Schema

Answer = TypeVar("Answer")

# It logs a line for each request, which no operator needs.
logging.getLogger("httpx2").setLevel(logging.WARNING)


class HttpRegistry:
    """A client of the schema registry at `url`, over HTTP.

    See catalog.Registry for the contract.
    """

    def __init__(
        self, url: str, *, settings: Mapping[str, Any] | None = None, timeout_seconds: float = 3.0
    ) -> None:
        # Errors name the address, but never the user in it.
        self._url = re.sub(r"//[^/@]*@", "//", url)
        config = {"url": url, "timeout": timeout_seconds, "max.retries": 1, **(settings or {})}
        self._client = SchemaRegistryClient(config)

    def register(self, subject: str, schema: Schema) -> int:
        """Register a schema at the registry over HTTP; see Registry."""
        return self._ask(
            lambda: int(self._client.register_schema(subject, RemoteSchema(schema.text, "AVRO")))
        )

    def find(self, subject: str, schema: Schema) -> int | None:
        """Ask the registry over HTTP for the id of a schema; see Registry."""

        def ask() -> int:
            registered = self._client.lookup_schema(subject, RemoteSchema(schema.text, "AVRO"))
            return int(registered.schema_id or 0)

        return self._ask_or_none(ask)

    def text(self, schema_id: int) -> str | None:
        """Ask the registry over HTTP for the text of a schema; see Registry."""
        return self._ask_or_none(lambda: str(self._client.get_schema(schema_id).schema_str))

    def set_compatibility(self, subject: str, level: str) -> None:
        """Set a subject's compatibility at the registry over HTTP; see Registry."""
        self._ask(
            lambda: self._client.set_config(
                subject, ServerConfig(compatibility=ConfigCompatibilityLevel(level))
            )
        )

    def close(self) -> None:
        """Give the HTTP connections to the schema registry back."""
        self._client.close()

    def _ask_or_none(self, question: Callable[[], Answer]) -> Answer | None:
        try:
            return self._ask(question)
        except Refused as error:
            if error.code == "registry.refused.404":
                return None
            raise

    def _ask(self, question: Callable[[], Answer]) -> Answer:
        try:
            return question()
        except SchemaRegistryError as error:
            if error.http_status_code >= 500:
                raise self._unavailable(error) from error
            raise Refused(
                f"The schema registry at {self._url} refused with HTTP {error.http_status_code}, "
                f"error {error.error_code}: {error.error_message}",
                code=f"registry.refused.{error.http_status_code}",
                fix="check that the address is the registry's Confluent-compatible API, and the "
                "schema's compatibility",
            ) from error
        except Exception as error:
            # The client lets the errors of its HTTP library through: there was no answer.
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> Unavailable:
        return Unavailable(
            f"The schema registry at {self._url} did not answer ({type(error).__name__}: {error}).",
            code="registry.unavailable",
            fix="check CONSENTRY_REGISTRY_URL and that the registry runs (`consentry local "
            "status` for the local one)",
        )
