"""The page in Debian's Chromium, without a screen."""
