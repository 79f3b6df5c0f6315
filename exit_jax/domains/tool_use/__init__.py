"""Multi-turn tool use: a policy that calls functions for a user who makes several requests (ExIt §5, BFCL v3)."""
