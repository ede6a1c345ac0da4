"""The errors of the local stack; the text of each ends with what to do about it."""

from __future__ import annotations

from consentry.domain.errors import ConsentryError


class LocalStackError(ConsentryError):
    """Raised when the local stack cannot do what was asked; `code` starts with `local.`."""


class Cancelled(LocalStackError):
    """Raised when the caller cancels the start of the local stack; nothing is left running."""

    def __init__(self) -> None:
        super().__init__("The start of the local stack was cancelled.", code="local.cancelled")
