"""The gate that every schema change passes: lint, evolution, the published baseline, AsyncAPI."""
