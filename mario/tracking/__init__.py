"""Where a training run is recorded, one file a sink."""
