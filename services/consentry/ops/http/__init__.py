"""The common parts of our HTTP services: addresses, head limits, strict bodies, problems.

They need FastAPI and uvicorn, which the services bring.
"""
