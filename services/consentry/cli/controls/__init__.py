"""`consentry pause …` and `consentry policy …`: what a regulator desk does, and what it would
do.
"""

from consentry.cli.controls.pauses import pause_app
from consentry.cli.controls.policies import policy_app

__all__ = ["pause_app", "policy_app"]
