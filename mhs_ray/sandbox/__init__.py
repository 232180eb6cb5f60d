"""What surrounds one attempt: its way out of the network, its files, its writable places."""
