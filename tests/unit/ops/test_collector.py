"""A long-lived program spares the garbage collector what it loaded; in a process of its own, as it
holds for good.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Final

_PROGRAM: Final = """
import gc, weakref
from consentry.ops.collector import spare_the_collector

class Node:
    pass

spare_the_collector()
assert gc.get_freeze_count() > len(gc.get_objects()), "what was loaded is left out of the rounds"
rounds = gc.get_stats()[0]["collections"]
kept = [[number] for number in range(40_000)]
assert gc.get_stats()[0]["collections"] == rounds, "no round while a large request is read"

node = Node()
node.itself = node
seen = weakref.ref(node)
del node
more = [[number] for number in range(200_000)]
assert seen() is None, "what holds itself is still found"
"""


def test_what_was_loaded_is_left_out_and_what_holds_itself_is_still_found() -> None:
    """Rounds over hundreds of thousands of objects that never go took a third of a bulk request's
    time.
    """
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
