"""What a producing service embeds: consent changes sent by its own Kafka client, acknowledged, with a token."""
