"""The files of a bundle by name; no torch, so that a plan can tell whether one is there."""

from __future__ import annotations

PLAN, WEIGHTS, MANIFEST = "plan.json", "weights.safetensors", "manifest.json"
