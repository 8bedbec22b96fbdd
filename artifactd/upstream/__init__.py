"""Other registries: asked through treq, with their own credentials, never with a client's."""
