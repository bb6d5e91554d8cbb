"""Evaluators: modules with a class `Evaluator`, which configs name by `type`.

`harness` has what evaluators build on, `schedule` makes and runs those of a
config.
"""
