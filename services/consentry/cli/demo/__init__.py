"""`consentry demo`: the public events of 2024 and 2025, from producers to three training systems,
and checked.
"""
