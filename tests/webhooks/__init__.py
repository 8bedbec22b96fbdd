"""Events as requests, and their delivery."""
