"""Tests of artifactd.kit."""
