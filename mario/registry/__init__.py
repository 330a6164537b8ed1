"""MLflow's model registry: register, resolve, move aliases, repair."""
