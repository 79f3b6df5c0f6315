"""A run's folder, and what is found in it again."""
