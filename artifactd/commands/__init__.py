"""The console script, and its commands on the data folder."""
