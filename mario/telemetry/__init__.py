"""Prometheus metrics: their names, and the pages that show them."""
