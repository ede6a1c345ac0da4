"""The command line `consentry`: reads arguments and settings, runs a command, exits.

It wires rooms together, and returns the exit status.
"""

from consentry.cli.app import main, run

__all__ = ["main", "run"]
