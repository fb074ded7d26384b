"""Which runs make a study? Declared, expanded, and run on this machine."""
