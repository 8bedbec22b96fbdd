"""HTTP as bytes on a connection: what a client sees whatever the routes are."""
