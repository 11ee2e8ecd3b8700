"""vLLM: its engine core in this process, and its weights written in place."""
