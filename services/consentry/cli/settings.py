"""The settings of a command: from the environment, or from the local stack that runs here."""

from __future__ import annotations

from typing import Any, Final

from consentry.domain.errors import Refused
from consentry.ops.settings import Settings
from consentry.wire.tokens import TokenKeys

_ADDRESSES: Final = ("kafka_bootstrap", "redis_url", "registry_url")


def load_settings(**overrides: Any) -> Settings:
    """Return a command's settings: options, environment, else the local stack that runs here.

    An override that is not None takes the place of the environment's value. If none of the three
    addresses is set, they come from the local stack that runs here, and the profile becomes
    `local`. Raises Refused where no stack runs, or where only some are set.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    settings = Settings.parse(given)
    addresses = {
        "kafka_bootstrap": settings.kafka_bootstrap,
        "redis_url": settings.redis_url.get_secret_value(),
        "registry_url": settings.registry_url,
    }
    missing = [name for name in _ADDRESSES if not addresses[name]]
    if not missing:
        return settings
    if len(missing) < len(_ADDRESSES):
        names = " and ".join(f"CONSENTRY_{name.upper()}" for name in missing)
        raise Refused(
            f"{names} is not set, but another address is: the two could belong to different "
            "systems.",
            code="settings.address_missing",
            fix="set all of CONSENTRY_KAFKA_BOOTSTRAP, CONSENTRY_REDIS_URL and "
            "CONSENTRY_REGISTRY_URL, or none of them to use the local stack",
        )
    return Settings.parse(given | _local_addresses(settings) | {"profile": "local"})


def _local_addresses(settings: Settings) -> dict[str, Any]:
    """Return the addresses of the local stack. Raises Refused where none runs."""
    # A trainer has no local stack, and not its packages either.
    from consentry.local.state import read_state  # noqa: PLC0415

    state = read_state(settings.local_dir)
    if state is None or state.addresses is None:
        raise Refused(
            f"No addresses are set and no local stack runs in {settings.local_dir}.",
            code="settings.address_missing",
            fix="run `consentry local up` in another terminal, or set CONSENTRY_KAFKA_BOOTSTRAP, "
            "CONSENTRY_REDIS_URL and CONSENTRY_REGISTRY_URL",
        )
    addresses = state.addresses
    return {
        "kafka_bootstrap": addresses.kafka,
        "redis_url": addresses.redis_url,
        "registry_url": addresses.registry_url,
    }


def load_token_keys(settings: Settings) -> TokenKeys:
    """Return the keys for consistency tokens from a command's settings; none without a file.

    Tokens are signed with them. Raises InvalidInput.
    """
    if settings.token_keys_file is None:
        return TokenKeys()
    return TokenKeys.read(settings.token_keys_file)
