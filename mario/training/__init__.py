"""The training loop on stable-baselines3: algorithms, checkpoints, collapse detection."""
