"""Speed, memory and learning, measured: ``python -m bench SUBJECT``. Every figure is beside its limit or a peer."""
