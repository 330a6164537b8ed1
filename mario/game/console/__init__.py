"""One NES: the contract, the native console, and nes-py as oracle."""
