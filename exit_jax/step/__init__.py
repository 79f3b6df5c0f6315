"""One training iteration as jitted programs, with the host between them where a domain is graded there."""
