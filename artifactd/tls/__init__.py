"""TLS for the daemon's clients: a Twisted endpoint that follows its files."""
