"""SmolLM2-135M-Instruct, a real pretrained model that a CPU can train."""
