"""Tests of artifactd.registry.mirror."""
