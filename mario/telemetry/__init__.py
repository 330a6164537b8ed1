"""Prometheus: the name of every metric, and how they are exported."""
