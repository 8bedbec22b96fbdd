"""Tests of artifactd.settings."""
