"""An HTTP client for registries: redirects, proxies, TLS, timeouts; knows nothing of OCI."""
