"""HTTP below the endpoints: application, limits, authentication, errors."""
