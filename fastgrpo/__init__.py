"""fastgrpo: a GRPO trainer for reasoning models that lives on its own kernels."""

__version__ = "0.1.0"
