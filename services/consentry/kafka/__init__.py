"""Kafka clients: reading, following, sending, topics, the schema registry."""
