"""The endpoints of the service, and how their bodies are parsed and rendered."""
