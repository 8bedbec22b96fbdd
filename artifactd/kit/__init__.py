"""What knows nothing of registries: Deferreds, streams, buffers."""
