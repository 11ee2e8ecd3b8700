"""Rollouts by vLLM servers, which run where they like and are spoken to over HTTP."""
