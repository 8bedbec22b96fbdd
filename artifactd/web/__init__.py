"""HTTP: routes on Klein, and the transport under them."""
