"""Tokens of an OpenID Connect issuer at the gateway: one issuer, one audience, one algorithm.

Source: JWT, RFC 7519, 8725 and 9068.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, cast

import jwt

from consentry.domain.errors import InvalidInput
from consentry.domain.values import NAME_PATTERN
from consentry.gateway.access.authenticator import CREDENTIAL_CHARACTERS_MAX, RefreshNeed
from consentry.gateway.access.errors import BadCredential
from consentry.gateway.access.jwks import KEY_TYPES, SigningKeys, jwks_fetcher
from consentry.gateway.access.keys import SUBJECT_PATTERN
from consentry.gateway.access.roles import Principal, Role
from consentry.ops.clock import Clock, system_clock

Algorithm = Literal["RS256", "PS256", "ES256", "EdDSA"]
ANY_PURPOSE: Final = "*"
LEEWAY_SECONDS_MAX: Final = 10
REMEMBERED_SECONDS: Final = 60.0
REMEMBERED_MAX: Final = 10_000
_SECONDS_MAX: Final = 1 << 40
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.ASCII)
_KEY_ID: Final = re.compile(r"[\x21-\x7e]{1,200}", re.ASCII)
_ROLES: Final = frozenset(role.value for role in Role)
_TYPES: Final = frozenset({"jwt", "at+jwt", "application/at+jwt"})
# A token never says which key to trust (jwk, x5c), where to look for it (jku, x5u) or how to read
# it (crit, b64, zip).
_REFUSED_PARAMETERS: Final = frozenset({"crit", "jku", "jwk", "x5u", "x5c", "b64", "zip", "enc"})
_CAUSES: Final[tuple[tuple[type[jwt.PyJWTError], str], ...]] = (
    (jwt.ExpiredSignatureError, "token_expired"),
    (jwt.ImmatureSignatureError, "token_not_yet_valid"),
    (jwt.InvalidAudienceError, "token_audience"),
    (jwt.InvalidIssuerError, "token_issuer"),
    (jwt.MissingRequiredClaimError, "token_claim_missing"),
    (jwt.InvalidSignatureError, "token_signature"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OidcSettings:
    """The OpenID Connect issuer that the gateway trusts, and how its tokens are read.

    Raises InvalidInput for a value that is missing or would weaken the checks.
    """

    issuer: str
    """Exactly the `iss` of its tokens."""
    audience: str
    """The name of this gateway, which `aud` has to hold."""
    jwks_url: str
    algorithm: Algorithm
    roles_claim: str = "roles"
    """A claim's name, or a path to it, such as `realm_access.roles`."""
    purposes_claim: str = "purposes"
    subscriber_claim: str = "subscriber"
    leeway_seconds: int = 5
    """The seconds that clocks may differ by, 0 to 10."""
    keys_ttl_seconds: float = 600.0
    """The seconds that a key counts after the issuer last named it."""
    timeout_seconds: float = 3.0
    ca_file: Path | None = None

    def __post_init__(self) -> None:
        missing = [name for name in ("issuer", "audience", "jwks_url") if not getattr(self, name)]
        if missing:
            _refuse(
                missing[0],
                "is not set",
                "set CONSENTRY_OIDC_ISSUER, _AUDIENCE, _JWKS_URL and _ALGORITHM",
            )
        if self.algorithm not in KEY_TYPES:
            _refuse(
                "algorithm",
                f"is none of {', '.join(KEY_TYPES)}",
                "name the one that the issuer signs with",
            )
        if not 0 <= self.leeway_seconds <= LEEWAY_SECONDS_MAX:
            _refuse("leeway_seconds", "is not 0 to 10", "keep clocks together instead")
        if not 20 <= self.keys_ttl_seconds <= 86_400:
            _refuse("keys_ttl_seconds", "is not 20 to 86400", "600 is usual")
        if not 0 < self.timeout_seconds <= 30:
            _refuse("timeout_seconds", "is not above 0 and at most 30", "3 is usual")


class _VerifiedToken(NamedTuple):
    """A token that was valid, remembered until `until`.

    It was signed by the key of this id, in this edition of the issuer's keys.
    """

    principal: Principal
    key_id: str
    until: float
    edition: int


class OidcScheme:
    """Gateway callers who show a token of the OpenID Connect issuer."""

    def __init__(
        self,
        settings: OidcSettings,
        keys: SigningKeys,
        *,
        clock: Clock = system_clock,
        monotonic_seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._clock = clock
        self._monotonic_seconds = monotonic_seconds
        self._remembered: OrderedDict[bytes, _VerifiedToken] = OrderedDict()

    def recognises(self, credential: str) -> bool:
        """Return whether the credential has the two dots of a signed token."""
        return credential.count(".") == 2

    def need(self, credential: str) -> RefreshNeed:
        """Return the need of the token's key; NOTHING for a token that cannot be valid anyway."""
        known = self._remembered.get(_fingerprint(credential))
        try:
            key_id = known.key_id if known else _key_id(credential, self._settings.algorithm)
        except BadCredential:
            return RefreshNeed.NOTHING
        return self._keys.need(key_id)

    def renew(self) -> None:
        """Ask the issuer for its signing keys."""
        self._keys.renew()

    def verify(self, credential: str) -> Principal:
        """Return the caller who shows this token. Raises BadCredential."""
        fingerprint = _fingerprint(credential)
        known = self._remembered.get(fingerprint)
        if (
            known is not None
            and known.edition == self._keys.edition
            and self._monotonic_seconds() < known.until
        ):
            return known.principal
        self._remembered.pop(fingerprint, None)
        key_id = _key_id(credential, self._settings.algorithm)
        key = self._keys.find(key_id)
        if key is None:
            raise BadCredential("token_key_unknown")
        claims = _checked_claims(credential, key, self._settings)
        principal = _principal(claims, self._settings)
        self._remember(fingerprint, principal, key_id, expires_seconds=claims["exp"])
        return principal

    def _remember(
        self, fingerprint: bytes, principal: Principal, key_id: str, *, expires_seconds: float
    ) -> None:
        left = min(REMEMBERED_SECONDS, expires_seconds - self._clock() / 1_000_000)
        now = self._monotonic_seconds()
        if left <= 0:
            return
        self._remembered[fingerprint] = _VerifiedToken(
            principal, key_id, min(now + left, self._keys.end), self._keys.edition
        )
        while len(self._remembered) > REMEMBERED_MAX:
            self._remembered.popitem(last=False)


def open_oidc_scheme(settings: OidcSettings) -> OidcScheme:
    """Return the gateway's check of tokens from the OpenID Connect issuer in the settings.

    Its keys are fetched when they are first needed.
    """
    fetch = jwks_fetcher(
        settings.jwks_url, timeout_seconds=settings.timeout_seconds, ca_file=settings.ca_file
    )
    keys = SigningKeys(fetch, algorithm=settings.algorithm, ttl_seconds=settings.keys_ttl_seconds)
    return OidcScheme(settings, keys)


def _fingerprint(token: str) -> bytes:
    """Return the digest by which a token is remembered.

    The token itself would lie in memory for whoever dumps it.
    """
    return hashlib.sha256(token.encode("ascii", "replace")).digest()


def _key_id(token: str, algorithm: str) -> str:
    """Return the key id of a token whose header has only what we expect. Raises BadCredential."""
    if len(token) > CREDENTIAL_CHARACTERS_MAX or _TOKEN.fullmatch(token) is None:
        raise BadCredential("token_malformed")
    header = _strict_object(token.partition(".")[0])
    if header.get("alg") != algorithm:
        raise BadCredential("token_algorithm")
    if not _REFUSED_PARAMETERS.isdisjoint(header):
        raise BadCredential("token_header_parameter")
    kind = header.get("typ")
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        raise BadCredential("token_type")
    key_id = header.get("kid")
    # Nothing but a name to look up among the keys that are there: never a path, a query or an
    # address.
    if not isinstance(key_id, str) or _KEY_ID.fullmatch(key_id) is None:
        raise BadCredential("token_key_id")
    return key_id


def _checked_claims(token: str, key: jwt.PyJWK, settings: OidcSettings) -> dict[str, Any]:
    """Return the claims of a token whose signature, issuer, audience and times are right.

    Raises BadCredential.
    """
    try:
        jwt.decode(
            token,
            key,
            algorithms=[settings.algorithm],
            audience=settings.audience,
            issuer=settings.issuer,
            leeway=settings.leeway_seconds,
            options={"require": ["iss", "aud", "sub", "exp", "nbf", "iat"]},
        )
    except jwt.PyJWTError as error:
        raise BadCredential(_cause_of(error)) from None
    # Read once more, strictly: PyJWT takes the last of two claims of one name, and a time written
    # as text.
    claims = _strict_object(token.split(".")[1])
    if not all(_is_instant(claims.get(name)) for name in ("exp", "nbf", "iat")):
        raise BadCredential("token_time")
    return claims


def _cause_of(error: jwt.PyJWTError) -> str:
    for kind, cause in _CAUSES:
        if isinstance(error, kind):
            return cause
    return "token_invalid"


def _is_instant(seconds: object) -> bool:
    """Return whether a claim is a plausible number of seconds; true and false are not numbers."""
    return type(seconds) in (int, float) and 0 <= cast("float", seconds) < _SECONDS_MAX


def _strict_object(part: str) -> dict[str, Any]:
    """Return the JSON object of a part of a token, no name in it twice. Raises BadCredential."""
    try:
        fields = json.loads(
            base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)),
            object_pairs_hook=_without_repetition,
            parse_constant=_no_constant,
        )
    except (ValueError, RecursionError):
        raise BadCredential("token_malformed") from None
    if not isinstance(fields, dict):
        raise BadCredential("token_malformed")
    return fields


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a name stands there twice")
    return fields


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _principal(claims: Mapping[str, Any], settings: OidcSettings) -> Principal:
    subject = claims.get("sub")
    if not isinstance(subject, str) or SUBJECT_PATTERN.fullmatch(subject) is None:
        raise BadCredential("token_subject")
    words = _words(_claim(claims, settings.roles_claim))
    roles = frozenset(Role(word) for word in words if word in _ROLES)
    subscriber = _claim(claims, settings.subscriber_claim)
    if not isinstance(subscriber, str) or NAME_PATTERN.fullmatch(subscriber) is None:
        subscriber = None
    return Principal(
        subject=subject,
        roles=roles,
        credential="oidc",
        purposes=_purposes(claims, settings) if Role.TRAINER in roles else None,
        subscriber=subscriber,
    )


def _purposes(claims: Mapping[str, Any], settings: OidcSettings) -> frozenset[str] | None:
    """Return the purposes that a trainer may ask about; None stands for all.

    Without the claim it is no purpose: it is never guessed.
    """
    purposes = _words(_claim(claims, settings.purposes_claim))
    return None if ANY_PURPOSE in purposes else frozenset(filter(NAME_PATTERN.fullmatch, purposes))


def _claim(claims: Mapping[str, Any], name: str) -> object:
    """Return a claim by its name, or by a path of names joined by dots; None without one."""
    if name in claims:
        return claims[name]
    value: object = claims
    for step in name.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    return value


def _words(value: object) -> tuple[str, ...]:
    """Return the words of a claim: a list of texts, or one text with spaces; else none."""
    if isinstance(value, str):
        return tuple(value.split(" "))
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        return tuple(value)
    return ()


def _refuse(name: str, problem: str, fix: str) -> None:
    raise InvalidInput(
        f"CONSENTRY_OIDC_{name.upper()} {problem}.", code="access.oidc_setting", fix=fix
    )
