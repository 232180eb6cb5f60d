"""What operators see of the platform: metrics, traces, usage. No Ray in here."""
