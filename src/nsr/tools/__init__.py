"""Tools beside training: play, explain."""
