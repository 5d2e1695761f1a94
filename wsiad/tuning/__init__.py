"""Search for hyperparameters with a few anomalous tiles: space, folds, trials and their order."""
