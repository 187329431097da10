"""Pictures and captions become rows on disk."""
