"""What starts next, and keeping jobs and reality the same. No Ray in here."""
