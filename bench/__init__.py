"""How fast, how much memory, how well: ``python -m bench SUBJECT``. Every figure stands beside its limit or a peer."""
