"""Super Mario Bros: levels, memory, rewards, actions, observations."""
