"""Bulk requests to the gateway: many events in one request, one a line, a result for each."""
