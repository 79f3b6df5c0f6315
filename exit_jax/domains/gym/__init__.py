"""The sets of reasoning-gym: tasks made from seeds, with a scorer for each."""
