"""What our HTTP services share: strict request bodies, and errors as problems.

Needs FastAPI, which they bring.
"""
