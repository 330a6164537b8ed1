"""Alerts and dashboards, declared once and rendered into monitoring/."""
