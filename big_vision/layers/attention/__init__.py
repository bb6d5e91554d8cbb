"""Attention: one function, `attend`, with several implementations behind it.

An implementation is a function registered under a name. Its keyword-only
arguments say what it supports; `attend` refuses everything else, so a mask is
never dropped silently. To add one, write it in a file of its own and register
it in `implementations.py`, or register it from any module that a run imports.
"""

from big_vision.layers.attention import implementations  # noqa: F401
from big_vision.layers.attention.multi_head import FEATURES
from big_vision.layers.attention.multi_head import MultiHeadAttention
from big_vision.layers.attention.multi_head import redraw
from big_vision.layers.attention.registry import attend
from big_vision.layers.attention.registry import Implementation
from big_vision.layers.attention.registry import IMPLEMENTATIONS
from big_vision.layers.attention.registry import register

__all__ = [
    "FEATURES", "IMPLEMENTATIONS", "Implementation", "MultiHeadAttention",
    "attend", "redraw", "register"]
