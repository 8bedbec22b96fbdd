"""TLS for the daemon's clients."""
