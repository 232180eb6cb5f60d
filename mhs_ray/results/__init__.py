"""What containers post: checked, summed up, exported, drawn (techcyte-contract §3)."""
