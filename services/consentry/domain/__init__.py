"""The rules: folding events into records, deciding, controls and orders. Pure: no I/O, no clock."""
