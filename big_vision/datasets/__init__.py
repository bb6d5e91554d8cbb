"""Data sources: how examples are stored and found; `core.open_source` opens."""
