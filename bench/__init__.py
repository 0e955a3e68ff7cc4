"""How fast tinydet is on this machine, beside others: see `bin/bench --help`."""
