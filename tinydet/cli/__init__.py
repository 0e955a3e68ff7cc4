"""The command line: options to arguments, results to stdout, progress to stderr."""

from tinydet.cli import files, learn, use
from tinydet.cli.shell import main

__all__ = ["files", "learn", "main", "use"]
