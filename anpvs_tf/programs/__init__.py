"""The programs of `bin/` and their console commands: flags, and nothing else."""
