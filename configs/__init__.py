"""One file an experiment: `get_config()` with the command that runs it and what to expect."""
