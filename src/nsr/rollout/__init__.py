"""Rollouts: engines that sample, and groups of graded completions."""
