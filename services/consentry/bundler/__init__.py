"""The bundler: builds signed bundles of all records, and repairs records that went back."""
