"""Mechanisms that know nothing of registries: Deferreds, streams, buffers, timers."""
