"""MLOps around an agent that learns to play Super Mario Bros."""
