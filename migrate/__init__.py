"""Move a run: pack, verify, send, place, resume."""
