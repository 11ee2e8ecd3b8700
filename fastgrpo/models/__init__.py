"""A transformers causal LM as trainer and built-in engine need it: checked, loaded, with packed attention."""
