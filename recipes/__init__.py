"""Each file is a run: its configuration, its reward, and the figures that its paper published."""
