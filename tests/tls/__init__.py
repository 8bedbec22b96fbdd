"""TLS for those who connect to the daemon."""
