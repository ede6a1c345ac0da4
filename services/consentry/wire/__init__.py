"""Bytes to domain values and back, without any Kafka client."""
