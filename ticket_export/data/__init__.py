"""Labelled images: where they come from, and seeded batches of them on the device."""
