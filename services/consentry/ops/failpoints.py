"""Places where a fault test can end the process. Off unless CONSENTRY_FAILPOINT names one."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from consentry.domain.errors import InvalidInput

Failpoint = Callable[[str], None]

NAMES: Final = (
    *("after_poll", "after_decode", "after_load", "after_fold", "after_store"),
    *("before_settle", "after_publish", "before_commit"),
)
"""Every place that the hot path passes, in the order in which it does."""


def parse_failpoint(text: str) -> Failpoint:
    """A failpoint from `NAME` or `NAME:COUNT`: the COUNTth time NAME is passed, the process ends as
    by kill -9.

    An empty text gives one that does nothing.
    """
    if not text:
        return lambda _name: None
    wanted, _, count = text.partition(":")
    if (count and not count.isdigit()) or wanted not in NAMES:
        raise InvalidInput(
            f"CONSENTRY_FAILPOINT holds {text!r}, which is not NAME or NAME:COUNT.",
            code="settings.invalid",
            fix=f"leave it empty outside fault tests; the names are {', '.join(NAMES)}",
        )
    left = int(count or 1)

    def pass_by(name: str) -> None:
        nonlocal left
        if name == wanted:
            left -= 1
            if left == 0:
                os._exit(137)

    return pass_by
