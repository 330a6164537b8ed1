"""Learning algorithms of stable-baselines3, one module each."""
