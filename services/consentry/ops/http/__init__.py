"""The common parts of our HTTP services: addresses, heads, strict bodies, and problems.

They need FastAPI and uvicorn, which the services bring.
"""
