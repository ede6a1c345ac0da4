"""HTTP itself: bodies, models, limits, problems, the OpenAPI description."""
