"""What asks for a better response at a point of a conversation, in our own words (ExIt App. B)."""

IMPROVE = """Improve your response at this point of the conversation. It replaces the current one, which was not carried out.

# Current response
{solution}

# Improved response"""
DIVERGE = """Respond once more at this point of the conversation, with an approach that differs significantly. It replaces the
current response, which was not carried out.

# Current response
{solution}

# Format
- Current approach: one line
- Different approach: one line
- Response: complete in itself"""
