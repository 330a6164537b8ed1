"""The versions that answer: where they come from, how they are swapped, batched and compared."""
