"""Thin shells around the platform's parts: in ``mhs_ray`` only these modules import Ray."""
