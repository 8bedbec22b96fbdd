"""Webhooks: events as requests, and their delivery."""
