"""Many games stepped in one call: the contract, the native batch, and the Python oracle."""
