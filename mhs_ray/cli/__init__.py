"""The ``mhs`` command: typer shells over the HTTP client, and what starts the platform on one machine."""
