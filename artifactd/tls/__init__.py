"""TLS for those who connect to the daemon: Twisted endpoints that follow their files."""
