"""Adapters that keep things: the SQL database and the blob stores."""
