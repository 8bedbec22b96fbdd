"""Authentication and access rules: identities, logins, tokens.  Used by :mod:`artifactd.web`."""
