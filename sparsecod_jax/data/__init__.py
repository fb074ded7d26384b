"""What does a model learn from? Data: from sources to batches of tokens."""
