"""The verbs of nnunet_ext: options, wiring, printing. Nothing imports this package."""
