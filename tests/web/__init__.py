"""Units of the web: what needs no socket."""
