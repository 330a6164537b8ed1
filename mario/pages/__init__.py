"""HTML pages of verdicts, runs and comparisons."""
