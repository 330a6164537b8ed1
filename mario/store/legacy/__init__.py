"""Imports the database of the older project."""
