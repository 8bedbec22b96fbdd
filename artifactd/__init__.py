"""artifactd: an OCI/Docker registry and pull-through cache in one daemon, on Twisted."""

__version__ = "0.1.0"
