"""Places where a fault test can end the process. Off unless CONSENTRY_FAILPOINT names one."""

from __future__ import annotations

import os
from collections.abc import Callable

Failpoint = Callable[[str], None]


def parse_failpoint(text: str) -> Failpoint:
    """A failpoint from `NAME` or `NAME:COUNT`: the COUNTth time NAME is passed, the process ends as by kill -9.

    An empty text gives one that does nothing.
    """
    if not text:
        return lambda _name: None
    wanted, _, count = text.partition(":")
    left = int(count or 1)

    def pass_by(name: str) -> None:
        nonlocal left
        if name == wanted:
            left -= 1
            if left == 0:
                os._exit(137)

    return pass_by
