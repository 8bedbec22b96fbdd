"""Tests of artifactd.auth."""
