"""The verbs of monitor: options, wiring, printing. Nothing imports this package."""
