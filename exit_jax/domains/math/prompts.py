"""What the policy is asked for: the user's messages in our own words (ExIt App. B)."""

SYSTEM = "Reason step by step and put the final answer into \\boxed{{}}."
IMPROVE = """Write an improved response to the request.

# Request
{request}

# Current response
{solution}

# Improved response"""
DIVERGE = """Write another response to the request, with an approach that differs significantly.

# Request
{request}

# Current response
{solution}

# Format
- Current approach: one line
- Different approach: one line
- Response: complete in itself"""
