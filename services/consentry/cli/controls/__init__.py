"""`consentry pause …` and `consentry policy …`: a regulator desk's commands, and their dry runs.

A dry run shows what a control would change.
"""
