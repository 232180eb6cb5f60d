"""Whole slide images: fetch, check, cache, open, read. Coordinates are level-0 pixels unless a type says otherwise.

Nothing is imported here, so that ``python -m mhs_ray.slides.check`` starts fast.
"""
