"""Is this machine, or a run's dataset, fit to train? Facts are gathered apart from the judgements on them."""
