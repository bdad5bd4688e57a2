"""The exact shrink: dead channels removed, the function unchanged."""
