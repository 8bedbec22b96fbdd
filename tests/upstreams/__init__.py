"""Registries to pull from, on loopback, in the process of the tests: as Docker Hub, and faulty."""
