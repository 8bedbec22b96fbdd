"""What runs by itself: collection, sweep, scrub, and fsck."""
