"""Competition mathematics: problems with a checkable final answer, graded on the host."""
