"""Measures what things cost, each beside a peer in the same run."""
