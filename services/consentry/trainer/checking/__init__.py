"""Checks of data files: do they hold rows that may not be used?"""
