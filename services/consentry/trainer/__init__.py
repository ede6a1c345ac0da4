"""What a training system embeds: follow what members and regulators decided, exclude, purge,
prove.
"""

from consentry.trainer.client import Client
from consentry.trainer.deciding.decide_table import Columns, Decisions

__all__ = ["Client", "Columns", "Decisions"]
