"""Evaluators: modules with a class `Evaluator`, which configs name by `type`.

`harness` has what all of them need; `schedule` makes and runs the evaluators of
a config.
"""
