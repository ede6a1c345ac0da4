"""The authenticator of the gateway, built from its settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from consentry.domain.errors import UnsafeSetting
from consentry.gateway.access.authenticator import Authenticator, CredentialScheme
from consentry.gateway.access.dev import DevScheme
from consentry.gateway.access.key_file import FileKeyStore, load_pepper
from consentry.gateway.access.keys import ApiKeyScheme
from consentry.gateway.access.oidc import OidcSettings, open_oidc_scheme
from consentry.ops.clock import Clock, system_clock


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessSettings:
    """The settings of the kinds of credentials that the gateway accepts, at least one.

    API keys need both files, tokens need `oidc`, names need `dev`.
    """

    keys_file: Path | None = None
    pepper_file: Path | None = None
    oidc: OidcSettings | None = None
    dev: bool = False


def open_authenticator(
    settings: AccessSettings, *, bind_host: str, profile: str, clock: Clock = system_clock
) -> Authenticator:
    """Return the check of callers for a gateway that listens on `bind_host`.

    The files are read once, so that a fault in them is seen at the start. Raises Refused or
    UnsafeSetting.
    """
    schemes: list[CredentialScheme] = []
    if (settings.keys_file is None) != (settings.pepper_file is None):
        raise UnsafeSetting(
            "API keys need both a file of keys and a file of their pepper, and only one of them "
            "is named.",
            code="access.half_of_the_keys",
            fix="set CONSENTRY_ACCESS_KEYS_FILE and CONSENTRY_ACCESS_PEPPER_FILE, or neither",
        )
    if settings.keys_file is not None and settings.pepper_file is not None:
        store = FileKeyStore(settings.keys_file)
        store.all()
        schemes.append(ApiKeyScheme(store, load_pepper(settings.pepper_file), clock))
    if settings.dev:
        schemes.append(DevScheme(bind_host=bind_host, profile=profile))
    if settings.oidc is not None:
        schemes.append(open_oidc_scheme(settings.oidc))
    if not schemes:
        raise UnsafeSetting(
            "No kind of credential is configured, so that nobody could be let in.",
            code="access.no_way_in",
            fix="set CONSENTRY_ACCESS_KEYS_FILE and CONSENTRY_ACCESS_PEPPER_FILE, or "
            "CONSENTRY_OIDC_ISSUER and its companions; docs/access.md says how",
        )
    return Authenticator(schemes)
