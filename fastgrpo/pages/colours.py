"""The colours of lines, areas and dots."""

COLOURS = (
    "#3b7dd8", "#d9731a", "#2f9e6e", "#8b6fd6", "#d6567a", "#1f97a8",
    "#a3812a", "#b05fb5", "#6f8f2f", "#c2603f", "#5b8a9a", "#808894",
)  # fmt: skip
"""Readable on white and on near-black alike (contrast above 3 on both). The last one is for what is left over."""
