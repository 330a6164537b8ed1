"""Dashboards, one module per dashboard."""
