"""The policy versions that answer: their sources, swaps, batches and comparison."""
