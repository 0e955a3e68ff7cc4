"""EfficientDet as a handful of pure functions, and thin modules that hold the weights."""

__version__ = "0.1.0"
