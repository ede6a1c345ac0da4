"""Access to the gateway: the credentials, roles and permissions of its callers."""

from consentry.gateway.access.authenticator import (
    CHALLENGE,
    Authenticator,
    require,
    require_purpose,
    require_subscriber,
)
from consentry.gateway.access.errors import Forbidden, Unauthenticated
from consentry.gateway.access.oidc import OidcSettings
from consentry.gateway.access.roles import PERMISSIONS, Permission, Principal, Role
from consentry.gateway.access.setup import AccessSettings, open_authenticator

__all__ = [
    "CHALLENGE",
    "PERMISSIONS",
    "AccessSettings",
    "Authenticator",
    "Forbidden",
    "OidcSettings",
    "Permission",
    "Principal",
    "Role",
    "Unauthenticated",
    "open_authenticator",
    "require",
    "require_purpose",
    "require_subscriber",
]
