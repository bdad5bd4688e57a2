"""Which channels live and die together, which are constant, and what they cost."""
