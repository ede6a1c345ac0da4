"""The bundler: the process that follows the log and publishes signed bundles of its state."""
