"""The command line: options to arguments, results to stdout, progress and notes to stderr."""

from tinydet.cli import data, detect, train, use
from tinydet.cli.base import main

__all__ = ["data", "detect", "main", "train", "use"]
