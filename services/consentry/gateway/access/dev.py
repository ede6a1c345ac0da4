"""Dev mode of the gateway: callers name themselves. Only for where nobody else can reach it."""

from __future__ import annotations

import re
from typing import Final

import structlog

from consentry.domain.errors import UnsafeSetting
from consentry.domain.values import NAME_PATTERN
from consentry.gateway.access.authenticator import RefreshNeed
from consentry.gateway.access.errors import BadCredential
from consentry.gateway.access.roles import Principal, Role
from consentry.ops.http.address import is_loopback

PROFILES: Final = frozenset({"local", "rehearsal"})
_PREFIX: Final = "dev:"
_FORM: Final = re.compile(
    r"dev:(?P<subject>[A-Za-z0-9_.@-]{1,64}):(?P<roles>[a-z+]+)(?::(?P<purposes>[^:]+))?", re.ASCII
)
_LOG = structlog.get_logger(__name__)


class DevScheme:
    """Gateway callers in dev mode, who name themselves and their roles without a secret.

    The form is `dev:<subject>:<role>[+<role>…][:<purpose>+…]`.

    A trainer's subscriber is its subject. Raises UnsafeSetting unless `bind_host` is loopback and
    `profile` is `local` or `rehearsal`: anywhere else everybody would be everything.
    """

    def __init__(self, *, bind_host: str, profile: str) -> None:
        if not is_loopback(bind_host):
            raise UnsafeSetting(
                f"Dev mode lets everybody in, and {bind_host!r} is not a loopback address.",
                code="access.dev_not_loopback",
                fix="listen on 127.0.0.1, or turn dev mode off and use API keys or OIDC",
            )
        if profile not in PROFILES:
            raise UnsafeSetting(
                f"Dev mode lets everybody in, and the profile is {profile!r}.",
                code="access.dev_profile",
                fix="turn dev mode off and use API keys or OIDC; it is only for the profiles "
                "local and rehearsal",
            )
        _LOG.warning(
            "DEV MODE: EVERYBODY WHO REACHES THIS GATEWAY MAY DO EVERYTHING. Nothing is checked "
            "but the form of a name",
            bind_host=bind_host,
            profile=profile,
        )

    def recognises(self, credential: str) -> bool:
        """Return whether the credential starts with `dev:`."""
        return credential.startswith(_PREFIX)

    def need(self, credential: str) -> RefreshNeed:
        """Return NOTHING: a name needs no look-up."""
        return RefreshNeed.NOTHING

    def renew(self) -> None:
        """Nothing to renew."""

    def verify(self, credential: str) -> Principal:
        """Return the caller whom a credential of dev mode names.

        Raises BadCredential for another form, an unknown role or an impossible purpose.
        """
        match = _FORM.fullmatch(credential)
        if match is None:
            raise BadCredential("dev_malformed")
        purposes = None if match["purposes"] is None else frozenset(match["purposes"].split("+"))
        for purpose in purposes or ():
            if NAME_PATTERN.fullmatch(purpose) is None:
                raise BadCredential("dev_purpose")
        try:
            roles = frozenset(Role(role) for role in match["roles"].split("+"))
        except ValueError:
            raise BadCredential("dev_role") from None
        return Principal(
            subject=match["subject"],
            roles=roles,
            credential="dev",
            purposes=purposes,
            subscriber=match["subject"] if Role.TRAINER in roles else None,
        )
