"""The roles and permissions of the gateway's callers, and the one table that joins them."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


class Role(enum.StrEnum):
    """The role of a gateway caller, such as a producer or an operator."""

    PRODUCER = "producer"
    TRAINER = "trainer"
    DESK = "desk"
    APPROVER = "approver"
    AUDITOR = "auditor"


class Permission(enum.StrEnum):
    """The right of a gateway caller to one kind of operation."""

    EMIT = "emit"
    """Send consent changes, relocations and erasures."""
    IMPOSE = "impose"
    """Impose pauses; they bind at once."""
    PROPOSE = "propose"
    """Propose lifts, policies, releases and replays; what widens waits for an approval."""
    APPROVE = "approve"
    """Approve or reject what somebody else proposed."""
    ASK = "ask"
    """Ask for the decision about a member; see `Principal.may_ask_about`."""
    EXPLAIN = "explain"
    """Read the grounds and the history behind a decision."""
    READ_CONTROLS = "read_controls"
    READ_STATUS = "read_status"
    """Read the state of the system and of subscribers; see `Principal.may_see_subscriber`."""
    READ_QUARANTINE = "read_quarantine"
    READ_APPROVALS = "read_approvals"
    READ_BUNDLES = "read_bundles"
    """Read the records of everybody, as signed bundles; see `Principal.may_read_bundles`."""


_EVERY_ROLE: Final = frozenset({Permission.READ_CONTROLS, Permission.READ_STATUS})

PERMISSIONS: Final[Mapping[Role, frozenset[Permission]]] = MappingProxyType(
    {
        # A producer has to know the version that its user has seen.
        Role.PRODUCER: _EVERY_ROLE | {Permission.EMIT, Permission.ASK},
        Role.TRAINER: _EVERY_ROLE | {Permission.ASK, Permission.READ_BUNDLES},
        Role.DESK: _EVERY_ROLE
        | {
            Permission.IMPOSE,
            Permission.PROPOSE,
            Permission.ASK,
            Permission.EXPLAIN,
            Permission.READ_QUARANTINE,
            Permission.READ_APPROVALS,
        },
        Role.APPROVER: _EVERY_ROLE
        | {Permission.APPROVE, Permission.READ_QUARANTINE, Permission.READ_APPROVALS},
        Role.AUDITOR: _EVERY_ROLE
        | {
            Permission.ASK,
            Permission.EXPLAIN,
            Permission.READ_QUARANTINE,
            Permission.READ_APPROVALS,
            Permission.READ_BUNDLES,
        },
    }
)
"""Role → permissions. What is not here is forbidden."""

NARROWED: Final = frozenset({Role.TRAINER})
"""Roles whose questions are bound to their own purposes and their own subscriber."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """A caller of the gateway whose credential was valid."""

    subject: str
    """The caller's name, the same on every request: OIDC `sub`, the subject of a key.

    1 to 200 visible ASCII characters.
    """
    roles: frozenset[Role]
    credential: str
    """The key's id, `oidc` or `dev`: safe to log."""
    purposes: frozenset[str] | None = None
    """Purposes that a trainer may ask about; None is any. Other roles are not narrowed by it."""
    subscriber: str | None = None
    """The subscriber that a trainer is; None is none."""

    def may(self, permission: Permission) -> bool:
        """Return whether any role of this caller has the permission."""
        return any(permission in PERMISSIONS[role] for role in self.roles)

    def may_ask_about(self, purpose: str) -> bool:
        """Return whether this caller may ask about `purpose`; a trainer: only its own."""
        if self._may_unnarrowed(Permission.ASK):
            return True
        return self.may(Permission.ASK) and (self.purposes is None or purpose in self.purposes)

    def may_see_subscriber(self, subscriber: str) -> bool:
        """Return whether this caller may see the state of `subscriber`: a trainer only its own."""
        if self._may_unnarrowed(Permission.READ_STATUS):
            return True
        return self.may(Permission.READ_STATUS) and self.subscriber == subscriber

    def may_read_bundles(self) -> bool:
        """Return whether this caller may read everybody's choices for every purpose.

        A trainer may only where it is not bound to some purposes.
        """
        if self._may_unnarrowed(Permission.READ_BUNDLES):
            return True
        return self.may(Permission.READ_BUNDLES) and self.purposes is None

    def _may_unnarrowed(self, permission: Permission) -> bool:
        return any(permission in PERMISSIONS[role] for role in self.roles - NARROWED)
