"""Python's garbage collector, in programs that live long and make much that lives short."""

from __future__ import annotations

import gc
from typing import Final

_NEW_OBJECTS: Final = 50_000
"""So many more made than freed before the collector looks; reference counts free nearly all of them
without it.
"""


def spare_the_collector() -> None:
    """Leave what was loaded until now out of all rounds, and have rounds less often.

    To be called once all is open.

    Modules, models and schemas hold hundreds of thousands of objects that never go: a collector
    that walks them again and again while a large request is read takes a third of its time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS, 20, 20)
