"""Options of a convolution stack that are said to do nothing do nothing, all others something."""

import numpy as np
import pytest
import torch
from torch import nn

from wsiad.core.config import build, idle_options_allowed
from wsiad.core.errors import ConfigError
from wsiad.detectors import registry
from wsiad.networks.conv_stack import Critic, Decoder, Encoder, seeded
from wsiad.networks.stack_options import StackOptions

PX = 16
SMALL = {"widths": [4, 6]}
OTHER = {
    "widths": [4, 8], "kernel": 5, "stride": [2, 1], "pool": "mean", "repeats": 2, "residual": True,
    "stem": 5, "hidden": [7, 5], "vector": "conv", "norm": "layer", "norm_first": False,
    "norm_hidden": False, "active_start": True, "activation": "elu", "up_activation": "elu",
    "slope": 0.5, "bias": False, "up": "bilinear", "latent_activation": "tanh",
    "output": "sigmoid", "out_kernel": 5, "skips": True, "spectral": True, "dropout": 0.5,
    "initial": "normal",
}  # fmt: skip
VARIANTS = [
    {"kernel": 3},
    {"kernel": 3, "stride": 1},
    {"kernel": 3, "norm": "none", "hidden": [5]},
    {"kernel": 3, "norm": "batch", "hidden": [5], "activation": "leaky"},
    {"kernel": 3, "norm": "instance", "hidden": [5], "up_activation": "leaky"},
    {"kernel": 3, "vector": "conv", "norm": "none", "initial": "kaiming"},
    {"kernel": 3, "residual": True, "stem": 4, "out_kernel": 3},
    {"kernel": 3, "residual": True, "out_kernel": 3, "hidden": [5], "up_activation": "relu"},
    {"kernel": 3, "pool": "max", "norm": "batch", "active_start": True},
]
ROLES = {
    "autoencoder": {"sees": True, "makes": True, "vector": True},
    "autoencoder of maps": {"sees": True, "makes": True, "vector": False},
    "generator": {"sees": False, "makes": True, "vector": True},
    "critic": {"sees": True, "makes": False, "vector": True},
    "critic of places": {"sees": True, "makes": False, "vector": False},
}


class Both(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.encoder, self.decoder = Encoder(shape), Decoder(shape)

    def forward(self, x):
        found = self.encoder.features(x)
        code = self.encoder.head(found[-1])
        return torch.cat([code.flatten(), self.decoder(code, found).flatten()])


def behaviour(options, role, vector):
    """Return the weights of a network and what it answers in training, as bytes."""
    if role.startswith("autoencoder"):
        make, inputs = Both, (3, 3, PX, PX)
    elif role == "generator":
        make, inputs = Decoder, (3, 5)
    else:
        make, inputs = Critic, (3, 3, PX, PX)
    shape = options.shape(PX, latent_channels=5, spatial=not vector)
    network = seeded(lambda: make(shape), 0)
    torch.manual_seed(1)
    answer = network(torch.randn(inputs))
    tensors = [tensor.numpy().tobytes() for tensor in network.state_dict().values()]
    return tensors, answer.detach().numpy().tobytes()


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_what_is_said_to_do_nothing_does_nothing_and_the_rest_something(variant, role):
    with idle_options_allowed():  # of the variant, some do nothing in some networks
        plain = StackOptions(**SMALL, **variant)
        before = behaviour(plain, role, ROLES[role]["vector"])
        uses = {f"network.{name}": use for name, use in plain.uses().items()}
        in_role, wrong = plain.uses_in("network", **ROLES[role]), []
        for name in StackOptions.model_fields.keys() - variant.keys() - SMALL.keys():
            if name == "skips" and role == "generator":
                continue  # refused by the method: there is no encoder
            changed = StackOptions(**SMALL, **{**variant, name: OTHER[name]})
            try:
                after = behaviour(changed, role, ROLES[role]["vector"])
            except Exception as error:
                after = repr(error)
            each = [found.get(f"network.{name}", (True, "")) for found in (uses, in_role)]
            used = all(use for use, _ in each)
            if used != (after != before):
                wrong.append((name, used))
    assert not wrong


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        (
            "reconstruction",
            {"network": {"residual": True, "repeats": 1}},
            "repeats does nothing with residual: true",
        ),
        (
            "reconstruction",
            {"network": {"hidden": [8]}, "spatial": True},
            "network.hidden does nothing with a map as latent",
        ),
        (
            "reconstruction",
            {"image_game": "prior", "critic_network": {"output": "tanh"}},
            "critic_network.output does nothing with a network that makes no image",
        ),
        (
            "gan",
            {"network": {"output": "tanh", "spectral": True}},
            "network.spectral does nothing with a network that sees none",
        ),
        (
            "gan",
            {"encoder_network": {"slope": 0.1}},
            "encoder_network.slope does nothing with activations that are not leaky",
        ),
        (
            "ganomaly",
            {"critic_network": {"norm": "none", "norm_first": False}},
            "norm_first does nothing with norm: none",
        ),
    ],
)
def test_an_option_of_a_network_that_does_nothing_is_refused_in_one_line(name, given, message):
    with pytest.raises(ConfigError, match=message) as error:
        build(registry.load(name).Options, given)
    assert "\n" not in str(error.value)
    with idle_options_allowed():  # runs of earlier versions state it
        build(registry.load(name).Options, given)


def test_what_does_nothing_is_left_out_of_values():
    given = {
        "spatial": True,
        "latent_channels": 3,
        "noise": 0.5,
        "critic_network": {"widths": [8]},
        "network": {"widths": [8, 8], "hidden": [4], "norm": "none", "norm_first": False},
    }
    options = registry.load("reconstruction").Options
    with idle_options_allowed():
        used = build(options, given).without_idle(given)
    assert used == {
        "spatial": True,
        "latent_channels": 3,
        "network": {"widths": [8, 8], "norm": "none"},
    }
    assert build(options, used).network.widths == (8, 8)


def test_the_defaults_of_a_method_are_never_refused():
    options = registry.load("gan").Options
    usual = options().critic_network.model_dump()
    assert usual["output"] == "tanh"  # of the levels that all networks share
    assert build(options, {"critic_network": usual}) == options()
    np.testing.assert_equal(build(options, {}).idle(), {})
