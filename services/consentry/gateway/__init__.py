"""The gateway: HTTP for producers and operators.

What it accepts is durable, ordered, readable and authorised.
"""
