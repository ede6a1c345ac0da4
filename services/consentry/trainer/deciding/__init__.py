"""The whole decision for tables of rows."""
