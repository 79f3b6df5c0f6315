"""Training around the iteration: checkpoints, signals, metrics, what is left behind."""
