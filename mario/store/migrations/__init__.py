"""Alembic's scripts, inside the package so that an installed wheel can upgrade a database."""
