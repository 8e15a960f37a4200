"""Policy -> numbers: pass@k, diversity, comparisons."""
