-- One database each beside the store's, so that no two systems share a schema.
CREATE DATABASE mlflow;
CREATE DATABASE prefect;
