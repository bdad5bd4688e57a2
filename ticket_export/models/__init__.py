"""Dense networks: the papers' own, and foreign builders with their weights."""
