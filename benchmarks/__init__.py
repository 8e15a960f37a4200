"""What nsr costs, measured side by side with others: `make bench`, and `python -m benchmarks --help`."""
