"""What a policy is asked for unless a config says otherwise: the user's messages in our own words (ExIt App. B)."""

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

# the default improve message of a domain whose scores say something
IMPROVE_BY_FEEDBACK = """Write an improved response to the request.

# Request
{request}

# Current response
{solution}

# Feedback
{feedback}

# Improved response"""

# what variants with ``critique`` ask for before a response is improved
CRITIQUE = """Check the response to the request, and say what is wrong with it and how to mend it. Do not write another one.

# Request
{request}

# Response
{solution}

# What is wrong"""

# what introduces a hint, or an answer, after a request
HINT = "\n\nThe solution begins as follows:\n"
ANSWER = "\n\nThe final answer is:\n"
