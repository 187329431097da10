"""Rows become connectors: arrays in, arrays out, no files."""
