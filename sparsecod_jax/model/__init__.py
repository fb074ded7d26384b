"""What is computed? A Pre-LN decoder in Flax Linen."""
