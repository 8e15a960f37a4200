"""Objectives (rewards to advantages) and surrogates (log-probs and advantages to a loss). Read these files first."""
