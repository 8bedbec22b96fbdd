"""Who is asking, and what they may do.  Asked by :mod:`artifactd.web` alone."""
