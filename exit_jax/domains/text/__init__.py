"""What the domains of text share: tokens, chat templates cut into pieces, and a domain of prompts and a score."""
