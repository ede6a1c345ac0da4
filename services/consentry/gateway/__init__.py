"""The producers' and operators' door over HTTP: what it accepts is durable, ordered, readable and
authorised.
"""
