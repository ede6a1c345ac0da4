"""The command line: parses, reads settings, wires rooms together, runs them, returns the exit
status.
"""

from consentry.cli.app import main, run

__all__ = ["main", "run"]
