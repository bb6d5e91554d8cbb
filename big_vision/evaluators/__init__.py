"""Evaluators: modules with a class `Evaluator`, made by `common`."""
