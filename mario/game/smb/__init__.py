"""What Super Mario Bros means: levels, memory, rewards, actions, observations."""
