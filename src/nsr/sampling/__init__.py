"""Policy -> completions."""
