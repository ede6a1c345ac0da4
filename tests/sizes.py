"""The sizes that tests run at: small in `make test`, full in `make test-all`.

A test marked `sized` runs in both, and takes its numbers from here. A test marked `long` runs in
`make test-all` only; `make test` has another one that covers the same capability once.
"""

from __future__ import annotations

import os
from typing import Final

IS_FULL: Final = os.environ.get("CONSENTRY_TEST_SIZE") == "full"


def size(small: int, full: int) -> int:
    """Return the number for this run."""
    return full if IS_FULL else small
