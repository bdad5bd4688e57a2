"""Executable forms of one network on one device, behind one Runner."""
