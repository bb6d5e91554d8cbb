"""Fixtures for evaluators, of data in memory."""

from tests.array_data import batch_sharding, loader, num_compiled, serve

__all__ = ["batch_sharding", "loader", "num_compiled", "serve"]
