"""Tests of artifactd.oci: pure values."""
