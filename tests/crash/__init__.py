"""What kill -9 and a second process leave and find."""
