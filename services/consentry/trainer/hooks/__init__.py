"""Hooks: a trainer's functions that are called when members become excluded, and for orders.

They are called for controls too. No call runs on the thread that follows the log. Each hook has a
thread and a bounded backlog of its own, so a hook that sleeps or raises delays neither answers nor
other hooks. When too much waits for a slow hook, it is merged into fewer events, and never dropped
without an event that says so.
"""

from consentry.trainer.hooks.exclusion import Exclusion, ExclusionCause
from consentry.trainer.hooks.registry import Hooks

__all__ = ["Exclusion", "ExclusionCause", "Hooks"]
