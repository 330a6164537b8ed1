"""The endpoints of the service, and how their bodies are read and written."""
