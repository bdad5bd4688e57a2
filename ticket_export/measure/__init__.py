"""Timing: raw samples in rounds, stability in words, ratios with intervals."""
