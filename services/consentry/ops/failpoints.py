"""Places where a fault test can end a service's process, if CONSENTRY_FAILPOINT names one."""

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
"""Every failpoint of the hot path, in the order in which it passes them."""


def parse_failpoint(text: str) -> Failpoint:
    """Return the place where a fault test kills a service, from `NAME` or `NAME:COUNT`.

    An empty text gives one that does nothing. When NAME is passed for the COUNTth time, the process
    ends as by kill -9. Raises InvalidInput.
    """
    if not text:
        return lambda _name: None
    end_at, _, count = text.partition(":")
    if (count and not count.isdigit()) or end_at not in NAMES:
        raise InvalidInput(
            f"CONSENTRY_FAILPOINT holds {text!r}, which is not NAME or NAME:COUNT.",
            code="settings.invalid",
            fix=f"leave it empty outside fault tests; the names are {', '.join(NAMES)}",
        )
    passes_left = int(count or 1)

    def pass_by(name: str) -> None:
        nonlocal passes_left
        if name == end_at:
            passes_left -= 1
            if passes_left == 0:
                os._exit(137)

    return pass_by
