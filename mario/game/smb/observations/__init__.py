"""What a policy sees: one definition for training, evaluation and serving."""
