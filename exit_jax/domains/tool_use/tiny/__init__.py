"""A world small enough for a policy made on a CPU: rooms, boxes and lamps, what is asked of them, and who can do it."""
