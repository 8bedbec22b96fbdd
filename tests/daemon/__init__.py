"""The daemon as it is put together, and as a process."""
