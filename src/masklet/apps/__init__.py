"""Programs on top of the public API: the command line, one file per group of commands."""
