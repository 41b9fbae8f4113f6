"""One training: planned, set up, run, shown."""
