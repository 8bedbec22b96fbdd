"""The page at ``/``, over sockets: rights, forms, cookies, hostile names."""
