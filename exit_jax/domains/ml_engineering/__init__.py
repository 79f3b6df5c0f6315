"""ML engineering (ExIt §5): scripts that a model wrote, run on a competition's data and graded by their submission."""
