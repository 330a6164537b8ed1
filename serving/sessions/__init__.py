"""Frame stacks that the service keeps for clients, and the game on the live page."""
