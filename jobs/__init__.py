"""One script per thing that a data scientist runs with ``ray job submit``."""
