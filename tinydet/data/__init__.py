"""Files to examples, in numpy."""
