"""Engines in processes of their own: they sample while the trainer trains, and may die without it."""
