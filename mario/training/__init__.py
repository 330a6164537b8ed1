"""PPO and DQN on stable-baselines3: callbacks, checkpoints, health."""
