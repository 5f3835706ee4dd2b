"""Follow a run: its log, its numbers, its end."""
