"""Hyperparameters chosen with a few anomalous tiles: space, folds, trials, what is tried next."""
