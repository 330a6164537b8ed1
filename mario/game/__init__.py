"""The console and the Gymnasium environment."""
