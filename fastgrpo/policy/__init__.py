"""Training: samples are packed, the policy gives their logprobs, a loss its gradient, an update new weights."""
