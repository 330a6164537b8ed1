"""What a policy sees; the only definition, shared by training, evaluation and serving."""
