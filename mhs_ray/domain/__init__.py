"""The domain in plain Python: no Ray, no SQLAlchemy, no boto3, no network, no clock."""
