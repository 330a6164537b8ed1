"""The experiment: frozen settings, each declared once, and their YAML files."""
