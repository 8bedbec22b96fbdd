"""Upkeep of the data: garbage collection, sweep, scrub and fsck."""
