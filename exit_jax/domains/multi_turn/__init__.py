"""Episodes of several turns: environments of a user's own or of others, which answer each response in text."""
