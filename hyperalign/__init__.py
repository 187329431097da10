"""Find the best pair of frozen encoders by training all their connectors at once."""

__version__ = "0.1.0"
