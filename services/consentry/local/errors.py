"""The errors of the local stack: each is one paragraph that ends in what to do about it."""

from __future__ import annotations

from consentry.domain.errors import ConsentryError


class LocalStackError(ConsentryError):
    """The local stack could not do what was asked; `code` starts with `local.`."""


class Cancelled(LocalStackError):
    """The caller asked to stop while the stack was still starting; nothing is left running."""

    def __init__(self) -> None:
        super().__init__("The start of the local stack was cancelled.", code="local.cancelled")
