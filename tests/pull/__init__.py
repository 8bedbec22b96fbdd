"""The cache of an upstream, asked over HTTP as its clients do."""
