"""Everything around the step: what a run starts from, its folder, its checkpoints, its display."""
