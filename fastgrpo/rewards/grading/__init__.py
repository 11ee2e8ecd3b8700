"""What verifiers share: where an answer stands in a text, and whether two answers are equal."""
