"""The event that a hook for exclusions is called with."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from consentry.domain.controls import Control
from consentry.domain.values import MemberId, Micros, Reason


class ExclusionCause(enum.StrEnum):
    """The kind of change for which a hook hears of newly excluded members."""

    RECORD = "RECORD"
    """Something was recorded about the members themselves; they are named."""
    CONTROL = "CONTROL"
    """A pause, a policy, or a lift that voids opt-ins. Its scope says whom it excludes; nobody is
    named.
    """
    PARTITION = "PARTITION"
    """An event of these partitions could not be read, and its member is not known: all members of
    the partitions are quarantined.
    """
    MANY = "MANY"
    """More changed than can wait for this hook: ask again about everybody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exclusion:
    """The event a hook gets: use for `purpose` is narrower from `at` on, maybe in future.

    The time is in microseconds. Ask again whether a row may be used: that also depends on where
    and when the row comes from.
    """

    purpose: str
    cause: ExclusionCause
    at: Micros
    reason: Reason | None = None
    members: tuple[MemberId, ...] = ()
    control: Control | None = None
    partitions: tuple[int, ...] = ()
