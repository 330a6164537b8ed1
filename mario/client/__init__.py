"""The typed HTTP client of the serving API."""
