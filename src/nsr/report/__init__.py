"""Run directories to tables, figures and one page."""
