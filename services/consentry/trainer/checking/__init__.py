"""Checks of data files for rows that may not be used for training."""
