"""`python -m tinydet`, as `tinydet`: torchrun starts modules."""

from tinydet.cli import main

if __name__ == "__main__":
    main(prog_name="tinydet")
