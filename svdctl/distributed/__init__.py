"""The processes of one run: what they tell each other, and how they end together."""
