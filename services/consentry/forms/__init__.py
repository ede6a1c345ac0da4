"""Documents that people write, as YAML or JSON: controls and scenarios."""
