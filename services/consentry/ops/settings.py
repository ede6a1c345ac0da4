"""All settings of all services and commands, read once from the environment (CONSENTRY_*)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from consentry.domain.errors import InvalidInput
from consentry.domain.values import DATASET_PATTERN, NAME_PATTERN


class Settings(BaseSettings):
    """The settings of all services and commands, from CONSENTRY_* variables.

    They are those that docs/settings.md lists; printing them masks secrets.
    """

    model_config = SettingsConfigDict(env_prefix="CONSENTRY_", frozen=True, extra="ignore")

    kafka_bootstrap: str = ""
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_SSL"] = "PLAINTEXT"
    kafka_sasl_mechanism: str = "SCRAM-SHA-512"
    kafka_sasl_username: str = ""
    kafka_sasl_password: SecretStr = SecretStr("")
    kafka_ca_file: Path | None = None
    redis_url: SecretStr = SecretStr("")
    registry_url: str = ""
    registry_credentials: SecretStr = SecretStr("")

    profile: Literal["production", "local", "rehearsal"] = "production"
    namespace: str = Field(default="consentry", pattern=r"^[a-z][a-z0-9-]{0,40}$")
    worker_id: str = Field(default="", pattern=r"^[A-Za-z0-9._-]{0,60}$")
    subscribers: str = ""
    table_members: int = Field(default=1_000_000, ge=1_000, le=10_000_000_000)
    staleness_seconds: float = Field(default=5.0, gt=0, le=3600)

    gateway_host: str = "127.0.0.1"
    gateway_port: int = Field(default=8780, ge=0, le=65535)
    gateway_rate: float = Field(default=20_000, gt=0)
    gateway_dev: bool = False
    token_keys_file: Path | None = None
    access_keys_file: Path | None = None
    access_pepper_file: Path | None = None
    oidc_issuer: str = ""
    oidc_audience: str = ""
    oidc_jwks_url: str = ""
    oidc_algorithm: Literal["RS256", "PS256", "ES256", "EdDSA"] = "RS256"
    oidc_roles_claim: str = "roles"
    oidc_purposes_claim: str = "purposes"
    oidc_subscriber_claim: str = "subscriber"
    oidc_ca_file: Path | None = None
    gateway_url: str = ""
    gateway_credential_file: Path | None = None

    bundle_store: str = Field(default="", max_length=1000)
    bundle_signing_key_file: Path | None = None
    bundle_public_key_files: str = ""

    agent_listen: str = "127.0.0.1:8790"
    agent_token_file: Path | None = None

    metrics_host: str = "127.0.0.1"
    metrics_port: int = Field(default=0, ge=0, le=65535)
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    failpoint: str = ""

    local_dir: Path = Path(".consentry")
    cache_dir: Path | None = None

    @field_validator("kafka_bootstrap")
    @classmethod
    def _is_host_and_port(cls, value: str) -> str:
        for address in filter(None, value.split(",")):
            host, _, port = address.strip().rpartition(":")
            if not host or not port.isdigit():
                raise ValueError(f"{address!r} is not HOST:PORT")
        return value

    @classmethod
    def parse(cls, values: Mapping[str, Any] | None = None) -> Self:
        """Return all settings as the environment gives them, overridden by `values`.

        Raises InvalidInput, which names the variable.
        """
        try:
            return cls(**(values or {}))
        except ValidationError as error:
            first = error.errors()[0]
            name = "_".join(["CONSENTRY", *map(str, first["loc"])]).upper()
            value = first.get("input")
            shown = "" if _may_be_secret(name, value) else f" {value!r}"
            raise InvalidInput(
                f"{name} has a value{shown} that does not fit: {first['msg']}.",
                code="settings.invalid",
                fix="correct the environment variable; docs/settings.md lists the values of each",
            ) from error

    def kafka(self) -> dict[str, str]:
        """Return every Kafka client's librdkafka settings, with the password: never log them."""
        config = {
            "bootstrap.servers": self.kafka_bootstrap,
            "security.protocol": self.kafka_security_protocol,
        }
        if self.kafka_security_protocol.startswith("SASL"):
            config |= {
                "sasl.mechanism": self.kafka_sasl_mechanism,
                "sasl.username": self.kafka_sasl_username,
                "sasl.password": self.kafka_sasl_password.get_secret_value(),
            }
        if self.kafka_ca_file is not None:
            config["ssl.ca.location"] = str(self.kafka_ca_file)
        return config

    def registry(self) -> dict[str, Any]:
        """Return the settings of the schema registry's client, beside its address.

        They hold credentials: never log them.
        """
        credentials = self.registry_credentials.get_secret_value()
        if not credentials:
            return {}
        return {"basic.auth.user.info": credentials}

    def bundle_public_keys(self) -> tuple[Path, ...]:
        """Return the setting for the public key files that signed bundles are verified with.

        From CONSENTRY_BUNDLE_PUBLIC_KEY_FILES="a.pub,…".
        """
        return tuple(Path(name) for name in _entries(self.bundle_public_key_files))

    def declared_subscribers(self) -> tuple[tuple[str, str], ...]:
        """Return the setting for the (subscriber, data set) pairs that owe purge receipts.

        From CONSENTRY_SUBSCRIBERS="name=dataset,…". Raises InvalidInput.
        """
        pairs: list[tuple[str, str]] = []
        for entry in _entries(self.subscribers):
            # Without an equals sign the data set is empty, and matches no pattern.
            subscriber, _, dataset = entry.partition("=")
            is_pair = NAME_PATTERN.fullmatch(subscriber) and DATASET_PATTERN.fullmatch(dataset)
            if not is_pair:
                raise InvalidInput(
                    f"CONSENTRY_SUBSCRIBERS holds {entry!r}, which is not NAME=DATASET, the name "
                    "in lower case.",
                    code="settings.invalid",
                    fix="write pairs separated by commas, such as ranker=posts,writer=articles",
                )
            pairs.append((subscriber, dataset))
        return tuple(pairs)


def _entries(text: str) -> list[str]:
    """Return the entries of a list that is separated by commas, without empty ones."""
    stripped = [entry.strip() for entry in text.split(",")]
    return [entry for entry in stripped if entry]


def _may_be_secret(name: str, value: object) -> bool:
    words = ("PASSWORD", "REDIS", "CREDENTIALS")
    return any(word in name for word in words) or "@" in str(value)
