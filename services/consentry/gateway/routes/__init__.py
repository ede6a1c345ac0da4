"""The HTTP routes of the gateway, one module a subject."""
