"""Metadata: what is in the registry, apart from the bytes.  The only place with SQL."""
