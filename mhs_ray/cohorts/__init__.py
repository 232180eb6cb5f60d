"""Cohorts on the data scientist's side: the manifest that goes in, the dataset that comes out."""
