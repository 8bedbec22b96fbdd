"""Tests of artifactd.upstream.http."""
