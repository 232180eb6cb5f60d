"""The platform on one machine: its files, its processes, what it needs."""
