"""Self-contained HTML pages about verdicts, pipeline runs and comparisons."""
