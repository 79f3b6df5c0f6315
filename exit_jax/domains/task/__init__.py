"""Your prompts, your reward: rows from anywhere, scored by functions in Python."""
