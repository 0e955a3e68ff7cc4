"""`python -m tinydet`, as `tinydet`: torchrun starts modules."""

from tinydet.cli import main

main(prog_name="tinydet")
