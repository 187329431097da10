"""Harm done for real, at length: `pytest -m trust`."""
