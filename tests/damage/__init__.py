"""What rots on the disk: found, never served, and had again where that can be."""
