"""Many games stepped at once: the contract, the native batch, and the Python oracle."""
