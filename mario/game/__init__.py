"""The game: consoles, batches of games, what their memory means, and Gymnasium environments."""
