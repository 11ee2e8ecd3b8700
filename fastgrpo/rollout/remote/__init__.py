"""Engines in processes of their own: they sample while the trainer trains, which goes on if one of them dies."""
