"""Whether trainer and sampler compute what the model itself computes: asked before a run begins, of every model."""
