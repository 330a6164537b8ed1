"""Append-only files that outlive a killed process: format and writer."""
