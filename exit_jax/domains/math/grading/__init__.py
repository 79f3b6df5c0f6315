"""What grading processes run. The folder is their path: its modules import one another by name, and nothing of exit_jax."""
