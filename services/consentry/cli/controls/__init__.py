"""`consentry pause …` and `consentry policy …`: what a regulator desk sends, and what it would
change.
"""
