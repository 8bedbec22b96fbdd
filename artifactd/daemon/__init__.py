"""The daemon: the rooms put together, and its life under twistd."""
