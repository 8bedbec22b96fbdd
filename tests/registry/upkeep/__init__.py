"""Tests of artifactd.registry.upkeep."""
