"""Preprocessing: ops on examples, and the strings that name them."""
