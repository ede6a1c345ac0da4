"""The sizes that tests run at: small in `make test`, full in `make test-all`.

A test marked `sized` runs in both, and takes its numbers from here. A test marked `long` runs in
`make test-all` only; `make test` has another one that covers the same capability once.
"""

from __future__ import annotations

import os
from typing import Final

IS_FULL: Final = os.environ.get("CONSENTRY_TEST_SIZE") == "full"


PATIENCE: Final = 4
"""Every bound of a wait is this many times what a quiet machine needs.

A wait ends as soon as what it waits for is there, so a long bound costs a passing test nothing.
"""


def size(small: int, full: int) -> int:
    """Return the number for this run."""
    return full if IS_FULL else small
