"""Sessions with the frame stacks of clients, and the game on the live page."""
