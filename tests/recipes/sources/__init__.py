"""The published constants, a file a family of systems."""
