"""What a chat model is asked for besides a set's question, in our own words."""

SYSTEM = (
    "Think about the question first. Then write your final answer between <answer> and </answer>, in the format that the "
    "question asks for and with nothing else between them."
)
