"""Standardised evaluation: protocol, records, statistics, gate, report."""
