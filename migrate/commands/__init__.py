"""The verbs of migrate: options, wiring, printing. Nothing imports this package."""
