"""One attempt at a job on a node: prepare, run, log, clean up. No Ray in here."""
