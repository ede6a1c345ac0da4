"""Many events in one request: a line each, a result each."""
