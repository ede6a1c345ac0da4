"""What most commands need: settings (or the running local stack's addresses) turned into
connections.
"""

from __future__ import annotations

from typing import Any

from confluent_kafka.admin import AdminClient

from consentry.domain.controls import Control
from consentry.domain.errors import Refused
from consentry.domain.values import Micros
from consentry.forms.fields import parse_instant
from consentry.kafka.clients import client_config, partition_count, read_all
from consentry.kafka.schema_registry import HttpRegistry
from consentry.ops.clock import system_clock
from consentry.ops.settings import Settings
from consentry.wire.catalog import Catalog, load_catalog
from consentry.wire.controls import read_control_or_pause
from consentry.wire.schemas import CONTROLS, MEMBER_EVENTS, topic_name
from consentry.wire.tokens import TokenKeys


def load_settings(**overrides: Any) -> Settings:
    """Settings from the environment; addresses that are not set come from the local stack, if one
    runs here.

    Only then, and only for what is not set, does the profile become `local`. Raises Refused where
    neither says.
    """
    settings = Settings.parse(
        {name: value for name, value in overrides.items() if value is not None}
    )
    missing = [
        name
        for name, value in (
            ("kafka_bootstrap", settings.kafka_bootstrap),
            ("redis_url", settings.redis_url.get_secret_value()),
            ("registry_url", settings.registry_url),
        )
        if not value
    ]
    if not missing:
        return settings
    if len(missing) < 3:
        names = " and ".join(f"CONSENTRY_{name.upper()}" for name in missing)
        raise Refused(
            f"{names} is not set, but another address is: the two could belong to different "
            "systems.",
            code="settings.address_missing",
            fix="set all of CONSENTRY_KAFKA_BOOTSTRAP, CONSENTRY_REDIS_URL and "
            "CONSENTRY_REGISTRY_URL, or none of them "
            "to use the local stack",
        )
    from consentry.local.state import read_state  # noqa: PLC0415 - needs the extra local

    state = read_state(settings.local_dir)
    if state is None or state.addresses is None:
        raise Refused(
            f"No addresses are set and no local stack runs in {settings.local_dir}.",
            code="settings.address_missing",
            fix="run `consentry local up` in another terminal, or set CONSENTRY_KAFKA_BOOTSTRAP, "
            "CONSENTRY_REDIS_URL "
            "and CONSENTRY_REGISTRY_URL",
        )
    found = state.addresses
    return Settings.parse(
        {
            **{name: value for name, value in overrides.items() if value is not None},
            "kafka_bootstrap": found.kafka,
            "redis_url": found.redis_url,
            "registry_url": found.registry_url,
            "profile": "local",
        }
    )


def recorded_and_effective(effective: str | None) -> tuple[Micros, Micros]:
    """When a command's event is recorded (now), and when it holds: as given in ISO 8601, else now
    too.
    """
    now = system_clock()
    return now, now if effective is None else parse_instant(effective, what="--effective")


def open_registry(settings: Settings) -> HttpRegistry:
    """The schema registry of the settings."""

    return HttpRegistry(settings.registry_url, settings=settings.registry())


def open_catalog(settings: Settings) -> Catalog:
    """All schema ids, from the registry. Raises Refused or Unavailable."""

    return load_catalog(open_registry(settings), settings.namespace)


def count_partitions(settings: Settings) -> int:
    """The partition count of member-events. Raises Refused or Unavailable."""

    admin = AdminClient(client_config(settings.kafka(), "consentry-cli"))
    return partition_count(admin, topic_name(settings.namespace, MEMBER_EVENTS), timeout_seconds=8)


def read_controls(settings: Settings) -> list[Control]:
    """Every control of the log, in its order. Raises Refused or Unavailable."""
    catalog = open_catalog(settings)
    messages = read_all(settings.kafka(), topic_name(settings.namespace, CONTROLS))
    return [
        read_control_or_pause(
            message.value, offset=message.offset, appended_at=message.appended_at, catalog=catalog
        )
        for message in messages
    ]


def load_token_keys(settings: Settings) -> TokenKeys:
    """The keys that consistency tokens are signed with; none where no file is named.

    Raises InvalidInput.
    """

    return (
        TokenKeys()
        if settings.token_keys_file is None
        else TokenKeys.read(settings.token_keys_file)
    )
