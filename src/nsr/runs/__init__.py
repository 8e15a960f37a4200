"""The run folder: settings, environment, metrics, trackers, locks and checks before the start."""
