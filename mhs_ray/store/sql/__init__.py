"""The database: SQLite by default, PostgreSQL in production, one SQLAlchemy code for both."""
