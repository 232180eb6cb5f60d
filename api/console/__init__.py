"""The console: pages for lab users and operators, over the same services as the API."""
