"""Models, one file per family: `Model(num_classes, ...)` and `load(...)`."""
