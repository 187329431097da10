"""Connectors become an order one can trust: arrays and tables, no files."""
