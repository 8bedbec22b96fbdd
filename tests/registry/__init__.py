"""Tests of artifactd.registry."""
