"""Documents that people write: controls and scenarios, as YAML or JSON."""
