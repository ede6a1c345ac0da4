"""Kafka clients: reading, following and sending messages, topics, the schema registry."""
