"""tinydet beside other implementations, in time and memory; bin/bench runs it."""
