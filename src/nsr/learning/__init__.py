"""Completions -> a better policy."""
