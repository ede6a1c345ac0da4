"""`consentry demo`: the public events of 2024 and 2025, played to three trainers and checked.

They go from producers to three training systems.
"""
