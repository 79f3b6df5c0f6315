"""Your prompts, your reward."""
