"""Repositories that an upstream has: the fill, its followers, ranges, eviction, proofs."""
