"""Recipes: strict YAML in, one frozen statement of what to do out."""
