"""Placeholder while the demo is written."""


def run() -> None:
    """x"""
