"""The system message of competition math: what answers look like (ExIt App. B, in our own words)."""

SYSTEM = "Reason step by step and put the final answer into \\boxed{{}}."
