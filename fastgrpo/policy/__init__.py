"""The trained weights: model, attention, sharding, optimizer."""
