"""Bytes: blobs by digest, and the staged bytes of uploads; one module per backend."""
