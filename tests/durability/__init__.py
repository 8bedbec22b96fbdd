"""What a power loss, a kill or a failing disk may do, and may not; docs/durability.md."""
