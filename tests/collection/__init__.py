"""Garbage collection against everything else that goes on."""
