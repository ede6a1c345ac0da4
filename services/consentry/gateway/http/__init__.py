"""HTTP at the gateway: bodies, models, limits, problems, the OpenAPI description."""
