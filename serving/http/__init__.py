"""The HTTP layer below the endpoints: application, limits, authentication, errors."""
