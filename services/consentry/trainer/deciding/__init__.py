"""Deciding in the trainer: the whole decision for tables of rows."""
