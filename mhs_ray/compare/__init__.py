"""Two results of the same slide side by side: what changed, how much, and whether that is allowed."""
