"""Wire types of ``/v1``, a module for each group of routes."""
