"""The study of docs/results on the embedded model: its runs, what is kept of them, and every table and figure."""
