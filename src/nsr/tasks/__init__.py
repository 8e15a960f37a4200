"""Tasks: problems with a checkable answer. Countdown is the first. Imports neither torch nor transformers."""
