"""The namespace of the ops. A build for Hugging Face's hub has a file of its own here, with a unique namespace."""

import torch

ops = torch.ops.fastgrpo


def add_op_namespace_prefix(op_name: str) -> str:
    """``NAMESPACE::op_name``, as `torch.library` wants it."""
    return f"fastgrpo::{op_name}"
