"""Memory estimate: what a run takes, whether it fits, and which flags make it fit."""
