"""Data sources: how examples are stored; `registry` opens one by name."""
