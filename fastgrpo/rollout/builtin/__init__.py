"""A decode loop over the transformers model itself, in any process, on any device."""
