"""Responses from the current weights."""
