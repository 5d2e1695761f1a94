"""Runs of a detector that is trained at once."""

import wsiad

TINY = {
    "input_px": 32,
    "latent_px": 8,
    "layers": {"relu1_2": 1.0},
    "batch": 4,
    "max_steps": 12,
    "val_interval": 4,
    "checkpoint_seconds": 1e-6,
}


def train(store, out, **values):
    given = {"store": store, "out": out, "detector": "dpa", "weights": "random", "quiet": True}
    return wsiad.train(**(given | values))
