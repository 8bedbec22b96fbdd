"""The page at ``/``: HTML for people with a browser, made from templates on the server."""
