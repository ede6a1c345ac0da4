"""The benchmark: what the processor does beside a naive peer, and how long an event takes to reach
a trainer.
"""
