"""Bytes that no client should send, over real sockets."""
