"""Failpoints: off unless named, and only by names that exist."""

from __future__ import annotations

import subprocess
import sys

import pytest

from consentry.domain.errors import InvalidInput
from consentry.ops.failpoints import NAMES, parse_failpoint


def test_without_a_name_nothing_ever_ends() -> None:
    """Production passes each of these places thousands of times a second."""
    pass_by = parse_failpoint("")

    for name in NAMES:
        pass_by(name)


def test_the_process_ends_at_the_named_place_the_named_time() -> None:
    """A fault test that never fires proves that nothing can break."""
    program = (
        "from consentry.ops.failpoints import parse_failpoint\n"
        "pass_by = parse_failpoint('after_store:2')\n"
        "for name in ('after_store', 'after_load', 'after_store'): print(name, flush=True); "
        "pass_by(name)\n"
        "print('survived')"
    )

    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )

    assert ended.returncode == 137
    assert ended.stdout.split() == ["after_store", "after_load", "after_store"]


@pytest.mark.parametrize("text", ["after_stroe", "after_store:x", "never:1"])
def test_a_name_that_does_not_exist_is_refused(text: str) -> None:
    """Mistyped, the fault would never happen and its test would pass."""
    with pytest.raises(InvalidInput, match="CONSENTRY_FAILPOINT"):
        parse_failpoint(text)
