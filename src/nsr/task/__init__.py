"""What the problem is: puzzles, expressions, grading, data. Imports neither torch nor transformers."""
