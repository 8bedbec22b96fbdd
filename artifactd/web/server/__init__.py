"""An HTTP/1.1 server on twisted.web: streaming bodies, sendfile, limits; knows nothing of OCI."""
