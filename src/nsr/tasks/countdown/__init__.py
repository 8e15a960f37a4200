"""The Countdown numbers game: puzzles, expressions, grading, data. Imports neither torch nor transformers."""
