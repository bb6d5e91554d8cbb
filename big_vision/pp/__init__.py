"""Preprocessing: ops on examples, and the strings that name them.

In all ops an image is [h, w, c], with c = 3 unless an op says otherwise, and
uint8 in [0, 255] between `decode` and `value_range`. Images of one data set may
differ in size and their sizes may be unknown in the graph, but the rank and the
number of channels must be known. A RaggedTensor as image is a ValueError.

Where an op takes a `size`, one number means a square and a pair means (h, w).
"""
