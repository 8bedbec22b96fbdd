"""The client of other registries, and HTTP under it."""
