"""The nouns of the OCI specifications as pure values: no Twisted, no I/O."""
