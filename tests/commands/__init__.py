"""Tests of artifactd.commands."""
