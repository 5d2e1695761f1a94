"""Networks of the presets have as many trainable numbers as the layers that they state.

Networks are built from the files of the presets. What is expected is arithmetic with the layers
as the papers or the authors' code list them, with the adaptations that a preset states: a
convolution has k · k · in · out weights and out biases, a normalisation 2 · out.
"""

from itertools import pairwise

import pytest
import torch

from wsiad.core.config import build
from wsiad.core.geometry import Mpp, TilePx
from wsiad.detectors import registry
from wsiad.detectors.reconstruction.reconstruction_games import classifier_of, latent_critic_of
from wsiad.detectors.reconstruction.reconstruction_model import ReconstructionModel
from wsiad.learning.detector import InputSpec
from wsiad.networks.autoencoder import Autoencoder
from wsiad.networks.features import BackboneFeatures, random_tensors
from wsiad.networks.translator import DomainCritic, domain_critic_shape
from wsiad.runs.presets import load_preset, preset_names

# --- arithmetic ---------------------------------------------------------------------------


def convs(kernel, *widths, bias=True, norm=True):
    """Convolutions one after the other, each with a normalisation."""
    return sum(kernel**2 * a * b + b * (bias + 2 * norm) for a, b in pairwise(widths))


def dense(*widths):
    return sum(a * b + b for a, b in pairwise(widths))


def residual(inputs, outputs, inner, *, norm=True, bias=True):
    """Two 3 × 3 convolutions, normalised before, and a 1 × 1 one where the width changes."""
    main = convs(3, inputs, inner, outputs, bias=bias, norm=False)
    skip = inputs * outputs + outputs if inputs != outputs else 0
    return main + skip + 2 * norm * (inputs + inner)


# --- reconstruction -----------------------------------------------------------------------


def medianomaly(outputs=16, latent=16, colours=3):
    """Of networks/ae.py of the authors: 4 × 4 convolutions without biases, dense 1024-2048-16."""
    down = convs(4, 3, 16, 32, 64, 64, bias=False)
    up = convs(4, 64, 64, 32, 16, bias=False) + 16 * 16 * colours
    return {
        "encoder": down + dense(1024, 2048) + 2 * 2048 + dense(2048, outputs),
        "decoder": dense(latent, 2048) + 2 * 2048 + dense(2048, 1024) + up,
    }


def baur(outputs=128, **others):
    """5 × 5 convolutions down to 8 × 8, 1 × 1 to 16 channels, dense, and their mirror."""
    return {
        "encoder": convs(5, 3, 32, 64, 128) + convs(1, 128, 16) + dense(16 * 64, outputs),
        "decoder": dense(128, 16 * 64) + convs(1, 16, 128) + BAUR_UP,
        **others,
    }


BAUR_UP = convs(5, 128, 64, 32, 32) + convs(1, 32, 3, norm=False)


def baur_spatial(**others):
    """Mean and log variance of 128 channels at 8 × 8 places."""
    return {
        "encoder": convs(5, 3, 32, 64, 128) + convs(1, 128, 256, norm=False),
        "decoder": convs(1, 128, 128, norm=False) + BAUR_UP,
        **others,
    }


def critic(kernel, *widths, places=16):
    """Convolutions of which the first is not normalised, and a number of the last's places."""
    levels = convs(kernel, 3, widths[0], norm=False) + convs(kernel, *widths)
    return levels + widths[-1] * places + 1


def bergmann():
    """Without normalisation: 4 × 4 halves, 3 × 3 does not, and 8 × 8 leads to 100 numbers."""
    layers = [(3, 32, 4), (32, 32, 3), (32, 64, 4), (64, 64, 3)]
    layers += [(64, 128, 4), (128, 64, 3), (64, 32, 3)]
    weights = sum(a * b * k**2 for a, b, k in layers)
    return {
        "encoder": weights + sum(b for _, b, _ in layers) + 64 * 32 * 100 + 100,
        "decoder": weights + sum(a for a, _, _ in layers) + 64 * 100 * 32 + 32,
    }


def pooled_u_net(*widths):
    """A stem, pairs of 3 × 3 convolutions before each pooling and enlargement, 1 × 1 at the end."""
    down = convs(3, 3, widths[0])
    down += sum(convs(3, a, b, b) for a, b in pairwise(widths))
    deep = widths[-1]
    up = convs(3, deep, deep, widths[-2])
    up += sum(convs(3, 2 * a, a, b) for b, a in pairwise(widths[:-1]))
    return {"encoder": down, "decoder": up + convs(1, 2 * widths[0], 3, norm=False)}


def riad_u_net(**others):
    """4 × 4 convolutions; on the way up each level but the innermost sees twice the channels."""
    up = convs(4, 512, 512) + convs(4, 1024, 256) + convs(4, 512, 128) + convs(4, 256, 64)
    return {
        "encoder": convs(4, 3, 64, 128, 256, 512, 512),
        "decoder": up + convs(4, 128, 3, norm=False),
        **others,
    }


def cavga():
    widths = (64, 64, 128, 256)
    down = convs(3, 3, 64, norm=False) + sum(residual(a, b, a) for a, b in pairwise(widths))
    up = sum(residual(a, b, b) for a, b in pairwise(widths[::-1]))
    return {
        "encoder": down + convs(1, 256, 256, norm=False),
        "decoder": convs(1, 128, 256, norm=False) + up + 2 * 64 + convs(3, 64, 3, norm=False),
        "critic": critic(4, 32, 64, 128, 256),
    }


def lsa():
    """The estimator is that of the code for CIFAR-10: 64 elements of 1-32-32-32-32-100 channels."""
    widths = (32, 64, 128, 256, 256)
    down = sum(residual(a, b, a, bias=False) for a, b in pairwise(widths))
    up = sum(residual(a, b, b, bias=False) for a, b in pairwise(widths[::-1]))
    return {
        "encoder": 9 * 3 * 32 + down + dense(4096, 256) + 2 * 256 + dense(256, 64),
        "decoder": dense(64, 256, 4096) + 2 * (256 + 4096) + up + 2 * 32 + 32 * 3,
        "latent": dense(64, *[64 * 32] * 4, 64 * 100),
    }


def memae():
    """The memory is of what the last level makes, and what it returns goes to the next."""
    return {
        "encoder": convs(3, 3, 64, 128, 128, 256),
        "decoder": convs(3, 256, 128, 128, 64) + convs(3, 64, 3, norm=False),
        "latent": 500 * 256,
    }


def ocgan():
    down, up = convs(5, 3, 64, 128, 256, 256), convs(5, 256, 256, 128, 64)
    judge = critic(5, 64, 128, 256, 256)
    return {
        "encoder": down + dense(4096, 128),
        "decoder": dense(128, 4096) + up + convs(5, 64, 3, norm=False),
        "critic": judge,
        "classifier": judge,
        "code critic": dense(128, 128, 64, 32, 16, 1),
    }


def pnet():
    code = convs(1, 512, 128, norm=False)
    up = convs(4, 512, 256) + convs(4, 512, 128) + convs(4, 256, 64)
    return {
        "encoder": convs(4, 3, 64, 128, 256, 512) + code,
        "structure": convs(4, 1, 64, 128, 256, 512) + code,
        "decoder": convs(1, 256, 512, norm=False) + up + convs(4, 128, 3, norm=False),
        "critic": critic(4, 64, 128, 256, 512),
    }


def ognet():
    down = convs(5, 3, 64, 128, 256, 512)
    return {
        "encoder": down,
        "decoder": convs(5, 512, 256, 128, 64) + convs(5, 64, 3, norm=False),
        "critic": down + dense(512 * 16, 1),
    }


def vq_vae():
    return {
        "encoder": convs(4, 3, 128, norm=False)
        + convs(3, 128, 128, norm=False)
        + convs(4, 128, 256, norm=False)
        + convs(3, 256, 256, norm=False)
        + convs(1, 256, 64, norm=False),
        "decoder": convs(1, 64, 256, norm=False)
        + convs(3, 256, 256, norm=False)
        + convs(4, 256, 128, norm=False)
        + convs(3, 128, 128, norm=False)
        + convs(4, 128, 3, norm=False),
    }


def scale_space():
    """Autoencoders of three, two and one level, all with 128 channels at 8 × 8 places."""

    def down(*widths):
        return convs(5, 3, *widths) + convs(1, widths[-1], 128, norm=False)

    def up(*widths):
        ups = convs(5, *widths[::-1], 32) + convs(1, 32, 3, norm=False)
        return convs(1, 128, widths[-1], norm=False) + ups

    coarser = down(32, 64) + up(32, 64) + down(32) + up(32)
    return {"encoder": down(32, 64, 128), "decoder": up(32, 64, 128), "coarser": coarser}


RECONSTRUCTION = {
    "ae-l2": medianomaly(),
    "constrained-ae": medianomaly(),
    "response-score": medianomaly(),
    "vae": medianomaly(outputs=32),
    "vae-gradient": medianomaly(outputs=32),
    "projection": medianomaly(outputs=32),
    "expvae": medianomaly(outputs=64, latent=32),
    "ae-u": medianomaly(colours=6),
    "vae-probability": medianomaly(outputs=32, colours=6),
    "itsr": medianomaly() | {"code critic": dense(16, 128, 64, 32, 16, 1)},
    "ae-l1": baur(),
    "context-encoder": baur(),
    "ce-vae": baur(outputs=256),
    # Of models/adversarial_autoencoder.py and constrained_adversarial_autoencoder.py.
    "aae": baur(**{"code critic": dense(128, 50, 50, 1)}),
    "constrained-aae": baur(**{"code critic": dense(128, 100, 50, 1)}),
    "spatial-ae": {"encoder": convs(5, 3, 32, 64, 128), "decoder": BAUR_UP},
    "spatial-vae": baur_spatial(),
    "anovaegan": baur_spatial(critic=critic(4, 64, 128, 256, 512)),
    "ae-ssim": bergmann(),
    "scale-space-ae": scale_space(),
    "alocc": {
        "encoder": convs(5, 3, 32, 64, 128),
        "decoder": convs(5, 128, 64, 32) + convs(5, 32, 3, norm=False),
        "critic": critic(5, 16, 32, 64, 128),
    },
    "ognet": ognet(),
    "ocgan": ocgan(),
    "riad": riad_u_net(),
    "scadn": riad_u_net(critic=critic(4, 64, 128, 256, 512)),
    "arnet": pooled_u_net(64, 128, 256, 512, 512),
    "puzzle-ae": pooled_u_net(64, 128, 256, 512, 512),
    "avid": pooled_u_net(64, 128, 256, 256) | {"critic": critic(4, 64, 128, 256, places=1)},
    "cavga": cavga(),
    "lsa": lsa(),
    "memae": memae(),
    "pnet": pnet(),
    "vq-vae": vq_vae(),
}

# --- the adversarial family ---------------------------------------------------------------


def dcgan(code, *, norms=(64, 128, 256, 512), biases=()):
    """4 × 4 convolutions between 64 px and 4 px, and one over all places to the code."""
    weights = 16 * sum(a * b for a, b in pairwise((3, 64, 128, 256, 512, code)))
    return weights + 2 * sum(norms) + sum(biases)


def f_anogan():
    ups, downs = (512, 512, 256, 128, 64), (64, 128, 256, 512, 512)
    down = convs(3, 3, 64, norm=False) + sum(residual(a, b, a) for a, b in pairwise(downs))
    up = sum(residual(a, b, b) for a, b in pairwise(ups)) + 2 * 64 + convs(3, 64, 3, norm=False)
    return {
        "generator": dense(128, 8192) + up,
        "encoder": down + dense(8192, 128),
        "image critic": down + dense(8192, 1),
    }


def bigan():
    """mnist_utilities.py with one more level for 64 px: 1024 units of image and code together."""
    sees = convs(4, 3, 64, norm=False) + convs(4, 64, 64, 64)
    return {
        "generator": dense(200, 1024, 8192) + 2 * (1024 + 8192) + convs(4, 128, 64, 32)
        + convs(4, 32, 3, norm=False),
        "encoder": convs(3, 3, 32, norm=False) + convs(3, 32, 64, 128) + dense(128 * 64, 200),
        "pair critic": sees + dense(200, 512) + dense(64 * 64 + 512, 1024, 1),
    }  # fmt: skip


def alad():
    widths = (64, 128, 256, 512)
    seen = dcgan(0, norms=widths[1:], biases=widths)
    return {
        "generator": dcgan(100, biases=(512, 256, 128, 64, 3)),
        "encoder": dcgan(100, biases=(*widths, 100)),
        "pair critic": seen + dense(100, 512, 512) + dense(8192 + 512, 1024, 1),
        "images critic": convs(5, 6, 64, 128, norm=False) + dense(128 * 256, 1),
        "codes critic": dense(200, 64, 32, 1),
    }


GANS = {
    "anogan": {"generator": dcgan(100), "image critic": dcgan(1, norms=(128, 256, 512))},
    "f-anogan": f_anogan(),
    "simultaneous-encoder": f_anogan(),
    "bigan": bigan(),
    "alad": alad(),
    "alpha-gan": {
        "generator": dcgan(100),
        "encoder": dcgan(100),
        "image critic": dcgan(1, norms=(), biases=(64, 128, 256, 512, 1)),
        "code critic": dense(100, 750, 750, 1),
    },
}

U_NET = (3, 64, 128, 256, 512, 512, 512)


def ganomaly():
    """The first level is not normalised, and nothing has a bias."""
    levels = {"encoder": dcgan(100, norms=(128, 256, 512)), "decoder": dcgan(100)}
    critic = dcgan(1, norms=(128, 256, 512))
    return {**levels, "second encoder": levels["encoder"], "critic": critic}


def skip_ganomaly(*, second):
    down = convs(4, *U_NET, bias=False) - 2 * 64
    up = convs(4, 512, 512, bias=False)
    up += sum(convs(4, 2 * a, b, bias=False) for b, a in pairwise(U_NET[1:-1]))
    found = {"encoder": down, "decoder": up + 16 * 2 * 64 * 3}
    found |= {"second encoder": down} if second else {}
    # Without features to match it is GANomaly's, else it judges by 100 of them.
    vector = 1 if second else 100
    return {**found, "critic": dcgan(vector, norms=(128, 256, 512)) + (vector if vector > 1 else 0)}


def block(inputs, outputs):
    """Two 3 × 3 convolutions, and a 1 × 1 one where the width changes; no normalisation."""
    return residual(inputs, outputs, outputs, norm=False)


def piad(code, *widths, judged):
    """One block a resolution; a 4 × 4 convolution makes the vector."""

    def down(outputs, *widths):
        blocks = block(widths[0], widths[0]) + sum(block(a, b) for a, b in pairwise(widths))
        vector = convs(4, widths[-1], outputs, norm=False)
        return convs(3, 3, widths[0], norm=False) + blocks + vector

    deep = widths[::-1]
    up = sum(block(a, b) for a, b in pairwise(deep))
    return {
        "encoder": down(code, *widths),
        "decoder": convs(4, code, deep[0], norm=False) + up + convs(3, deep[-1], 3, norm=False),
        "image critic": down(1, *judged),
        "latent critic": dense(code, 1024, 1024, 1),
    }


def fixed_point_gan():
    """Two halvings, three residual blocks, and their mirror; a critic of five levels."""
    levels = convs(4, 64, 128, 256, bias=False) + 2 * 64 + 9 * 4 * 64
    mirror = convs(4, 256, 128, 64, bias=False) + 49 * 64 * 3
    blocks = 6 * (2 * 9 * 256**2 + 2 * 2 * 256)
    judged = convs(4, 3, 64, 128, 256, 512, 1024, norm=False) + 1024 + 1 + 4 * 1024
    return {"translator": levels + blocks + mirror, "critic": judged}


# --- density, diffusion, classifiers and students --------------------------------------------


def couplings(channels, hidden, kernels):
    """Scale and shift of the channels, and two convolutions from one half to twice the other."""
    half = channels // 2
    return sum(
        2 * channels + k**2 * half * hidden + hidden + k**2 * hidden * channels + channels
        for k in kernels
    )


def glow():
    """Four scales of 12, 24, 48 and 96 channels, half of which go on; 32 steps each."""
    total = 0
    for channels in (12, 24, 48, 96):
        half = channels // 2
        network = convs(3, half, 512, norm=False) + convs(1, 512, 512, norm=False)
        network += convs(3, 512, channels, norm=False)
        total += 32 * (2 * channels + channels**2 + network)
    priors = sum(convs(3, half, 2 * half, norm=False) for half in (6, 12, 24))
    return total + priors + 2 * 96


def denoiser():
    """DDPM's U-Net of 64-128-256 channels with two blocks a resolution, attention at 16 px."""
    time = 256

    def block(before, after, *, attends=False):
        made = 2 * before + convs(3, before, after, norm=False) + dense(time, after)
        made += 2 * after + convs(3, after, after, norm=False)
        made += before * after + after if before != after else 0
        return made + attends * (2 * after + dense(after, 3 * after) + dense(after, after))

    inward = block(64, 64) * 2 + block(64, 128) + block(128, 128)
    inward += block(128, 256, attends=True) + block(256, 256, attends=True)
    middle = block(256, 256, attends=True) + block(256, 256)
    # What came in on the way down is met in reverse order: 64 | 64 64 64 | 128 128 128 | 256 256.
    outward = sum(block(256 + b, 256, attends=True) for b in (256, 256, 128))
    outward += block(256 + 128, 128) + block(128 + 128, 128) + block(128 + 64, 128)
    outward += block(128 + 64, 64) + block(64 + 64, 64) * 2
    between = sum(9 * c * c + c for c in (64, 128, 256, 128))
    ends = convs(3, 3, 64, norm=False) + 2 * 64 + convs(3, 64, 3, norm=False)
    return dense(64, time, time) + inward + middle + outward + between + ends


def attention(width):
    """Queries, keys, values and what becomes of them."""
    return dense(width, 3 * width) + dense(width, width)


def perceptron(width, *, bias):
    return 8 * width**2 + bias * 5 * width


def uniad(channels, width=256, places=64):
    """Four layers of an encoder, and of a decoder with a query for each place."""
    layer = attention(width) + perceptron(width, bias=True) + 2 * 2 * width
    query = places * width + attention(width) + 2 * width
    return dense(channels, width, channels) + places * width + 8 * layer + 4 * query


def transformer(width=768):
    """Attention and a perceptron without biases, each after a normalisation."""
    return attention(width) + perceptron(width, bias=False) + 2 * 2 * width


def dfr(channels, code):
    widths = (channels, (channels + 2 * code) // 2, 2 * code, code)
    return dense(*widths, *widths[-2::-1]) + 4 * (widths[1] + widths[2])


def slim_vgg():
    """Configuration B of models/network.py: 13 convolutions without biases.

    A convolution that neither a pooling nor a compared layer follows is normalised.
    """
    widths = (3, 16, 16, 16, 128, 16, 16, 256, 16, 16, 512, 16, 16, 512)
    return convs(3, *widths, bias=False, norm=False) + 8 * 2 * 16


def draem_restorer(b):
    """Five stages of pairs of 3 × 3 convolutions with b to 8 b channels, and their mirror."""
    down = [3, b, b, 2 * b, 2 * b, 4 * b, 4 * b, 8 * b, 8 * b, 8 * b, 8 * b]
    up = [8 * b] * 3 + [4 * b] * 3 + [2 * b] * 3 + [b] * 4
    return convs(3, *down) + convs(3, *up) + convs(3, b, 3, norm=False)


def draem_finder(b):
    """Six stages, five enlargements, each followed by a pair that also sees the way down."""
    down = [6, b, b, 2 * b, 2 * b, 4 * b, 4 * b, *[8 * b] * 6]
    up = [(8, 8, 16), (8, 4, 12), (4, 2, 6), (2, 1, 3), (1, 1, 2)]
    ups = sum(convs(3, i * b, o * b) + convs(3, both * b, o * b, o * b) for i, o, both in up)
    return convs(3, *down) + ups + convs(3, b, 2, norm=False)


def patches():
    """Networks of 17, 33 and 65 px with 128 outputs (kernel, channels).

    An implementation by others has 256 channels in the second layer for 33 px, as the preset says.
    """
    layers = [
        [(6, 128), (5, 256), (5, 256), (4, 128)],
        [(3, 128), (5, 128), (2, 256), (4, 128)],
        [(5, 128), (5, 128), (5, 128), (4, 256), (1, 128)],
    ]
    return sum(
        convs(kernel, before, after, norm=False)
        for one in layers
        for (_, before), (kernel, after) in pairwise([(0, 3), *one])
    )


def pdn_small(outputs):
    ends = convs(4, 3, 128, 256, norm=False) + convs(4, 256, outputs, norm=False)
    return ends + convs(3, 256, 256, norm=False)


def efficient_ad():
    """PDN-S with 384 outputs, and twice as many of the student."""
    # At 64 px: three halvings, 8 × 8, four enlargements with 4 × 4, and two 3 × 3 convolutions.
    coder = convs(4, 3, 32, 32, 64, norm=False) + convs(8, 64, 64, norm=False)
    mirror = 4 * convs(4, 64, 64, norm=False) + convs(3, 64, 64, 384, norm=False)
    described = {"teachers": pdn_small(384), "student": pdn_small(768)}
    return described | {"autoencoder": coder + mirror}


def wide_resnet(factor, classes):
    """Of 16 layers: three groups of two blocks, without biases but in the last layer."""
    widths = (16, 16 * factor, 32 * factor, 64 * factor)
    total = convs(3, 3, 16, bias=False, norm=False) + 2 * widths[-1] + dense(widths[-1], classes)
    for before, after in pairwise(widths):
        total += convs(3, before, after, after, after, after, bias=False, norm=False)
        total += before * after + 2 * before + 3 * 2 * after
    return total


DPA = {"encoder": 2_776, "decoder": 2_183}
"""Of the published configuration for CAMELYON16."""
RESNET_18 = 11_689_512 - dense(512, 1000)
"""Without its classifier, of torchvision's table."""
RESNET_18_LAYER4 = 8_393_728
LENET = {"encoder": 25 * (3 * 32 + 32 * 64 + 64 * 128) + 8 * 8 * 128 * 128}

GAMES = GANS | {
    "ganomaly": ganomaly(),
    "skip-ganomaly": skip_ganomaly(second=False),
    "tang-2019": skip_ganomaly(second=True),
    "piad": piad(256, 32, 64, 128, 256, 256, judged=(32, 64, 128, 128, 128)),
    "piad-tuned": piad(128, 32, 64, 128, 128, 128, judged=(32, 64, 128, 128, 128)),
    "fixed-point-gan": fixed_point_gan(),
}
OTHERS = {
    "dpa": DPA,
    "dpa-camelyon16": DPA,
    "dpa-growing": DPA,
    "dpa-camelyon16-growing": DPA,
    "deep-geo": {"classifier": wide_resnet(8, 72)},
    "deep-geo-tuned": {"classifier": wide_resnet(8, 72)},
    "rotnet": {"classifier": wide_resnet(4, 4 + 3 + 3)},
    "rotnet-turns": {"classifier": wide_resnet(4, 4)},
    "deep-svdd": LENET,
    "deep-svdd-soft-boundary": LENET,
    "deep-sad": LENET,
    "devnet": {"network": RESNET_18 + dense(512, 1)},
    "mkd": {"student": slim_vgg()},
    "stfpm": {"student": RESNET_18 - RESNET_18_LAYER4},
    "ssd": {"encoder": RESNET_18 + dense(512, 512, 128)},
    "csi": {"encoder": RESNET_18 + dense(512, 512, 128) + dense(512, 4)},
    "cutpaste": {"encoder": RESNET_18 + dense(512, 512, 128) + dense(512, 3)},
    # Eight 3 × 3 convolutions, and the layers that tell eight directions.
    "patch-svdd": {
        "encoder": convs(3, 3, 32, 64, 128, 128, 64, 32, 32, 64, norm=False)
        + dense(64, 128, 128, 8)
    },
    "draem": {"restorer": draem_restorer(128), "finder": draem_finder(64)},
    "uninformed-students": {"teachers": patches(), "students": 3 * patches()},
    "efficient-ad": efficient_ad(),
    "anoddpm": {"denoiser": denoiser()},
    "linmans-2024": {"denoiser": denoiser()},
    "real-nvp": {"flow 0": 12 * couplings(3 * 4 * 4, 4 * 24, [3])},
    "glow": {"flow 0": glow()},
    "fastflow": {
        f"flow {number}": 4 * couplings(width, width // 2, (3, 1))
        for number, width in enumerate((64, 128, 256))
    },
    "cflow": {
        f"flow {number}": 8 * couplings(width, width, [1])
        for number, width in enumerate((512, 1024, 2048))
    },
    # A number for each value of the image, 3 × 3 of 64 channels, 16 × 16 places to 128 units.
    "dsebm": {"energy 0": 3 * 64 * 64 + convs(3, 3, 64, norm=False) + dense(64 * 256, 128)},
    "dagmm": {"mixture 0": dense(448, 64, 16, 4, 16, 64, 448) + dense(6, 10, 4)},
    "dagmm-conv": {
        "mixture 0": convs(4, 3, 16, 32, 64, 64, norm=False)
        + dense(1024, 4)
        + dense(4, 1024)
        + convs(4, 64, 64, 32, 16, 3, norm=False)
        + dense(6, 10, 4)
    },
    "uniad": {"restorer": uniad(272)},
    "dfr": {"restorer": dfr(1024, 40)},
    "dinomaly": {"restorer": perceptron(768, bias=False) + 8 * transformer()},
    # A learnt scale for each of twelve heads in eight blocks; one block makes the prototypes.
    "inp-former": {
        "restorer": 6 * 768 + perceptron(768, bias=True) + 9 * transformer() + 8 * 12,
    },
    "oc-cnn": {"head": dense(4096, 4096, 2)},
    "simplenet": {"head": dense(1536, 1536, 1024) + 2 * 1024 + 1024},
    "glass": {"head": dense(1536, 1536, 1024) + 2 * 1024 + 1024},
    "oc-nn": {"head": 4096 * 128 + 128},
    "doc": {"head": dense(4096, 4096) + dense(4096, 10)},
    "mil": {"classifier": dense(512, 1)},
    "chowder": {"classifier": dense(2048, 1) + dense(10, 200, 100, 1)},
    "abmil": {"classifier": dense(512, 512) + 2 * dense(512, 128) + dense(128, 1) + dense(512, 1)},
}
COUNTS = RECONSTRUCTION | GAMES | OTHERS
FROZEN = {
    *("deep-if", "dictionary", "gaussian", "gmm", "kde", "knn", "ocsvm", "padim", "patchcore"),
    *("pca", "svdd"),
}
"""Detectors without trained networks."""
OF_ANY_BACKBONE = {"caad", "deep-sad-head", "devnet-head", "outlier-exposure"}
"""Presets whose network is one layer or two on the features of a network that the user chooses."""
ELSEWHERE = {"reverse-distillation"}
"""Presets whose blocks are compared with torchvision's, in the test of the detector."""
VECTORS = {"oc-cnn": 4096, "oc-nn": 4096, "doc": 4096, "simplenet": 1536, "glass": 1536}
VECTORS |= {"mil": 512, "chowder": 2048, "abmil": 512}
"""Channels of the published backbones."""
DINO = [(768, 28, 28)] * 8
MAPS = {
    "fastflow": [(64, 16, 16), (128, 8, 8), (256, 4, 4)],
    "cflow": [(512, 8, 8), (1024, 4, 4), (2048, 2, 2)],
    "dagmm": [(448, 8, 8)],
    "uniad": [(24, 32, 32), (32, 16, 16), (56, 8, 8), (160, 4, 4)],
    "dfr": [(256, 16, 16)] * 4,
    "dinomaly": DINO,
    "inp-former": DINO,
}
"""Shapes of the features of the published backbones, of others than 64 px of an image."""

# --- the networks -------------------------------------------------------------------------


def detector(name):
    """Return the detector of a preset, and its options."""
    preset = load_preset(name)
    cls = registry.load(preset.detector)
    options = build(cls.Options, preset.options, source=name)
    size = cls.input_size(options, tile_px=64, mpp=1)
    return cls(options, InputSpec(TilePx(size), Mpp(1))), options


def of_reconstruction(found, options, name):
    model = ReconstructionModel(options, 64)
    return {
        **dict(model.learnt().items()),
        "critic": model.image_critic,
        "code critic": latent_critic_of(model, 0),
        "classifier": classifier_of(model, 0),
    }


def of_gan(found, options, name):
    model = found._untrained()
    critics = {f"{key} critic": critic for key, critic in model.critics.items()}
    return {"generator": model.generator, "encoder": model.encoder, **critics}


def of_ganomaly(found, options, name):
    model = found._untrained(0)
    made = model.generator
    parts = {"encoder": made.encoder, "decoder": made.decoder, "second encoder": made.second}
    return parts | {"critic": model.critic}


def of_piad(found, options, name):
    players = found._players(Autoencoder(options.shape(64)), 0)
    names = ("encoder", "decoder", "image_critic", "latent_critic")
    return {each.replace("_", " "): getattr(players, each) for each in names}


def of_fixed_point_gan(found, options, name):
    shape = domain_critic_shape(64, width=options.critic_width, levels=options.critic_levels)
    return {"translator": found._untrained(0), "critic": DomainCritic(shape)}


def of_density(found, options, name):
    kind = {"dsebm": "energy", "dagmm": "mixture"}.get(options.model, "flow")
    shapes = MAPS.get(name, [(3, 64, 64)])
    return {f"{kind} {number}": found._model(shape) for number, shape in enumerate(shapes)}


def of_feature_reconstruction(found, options, name):
    found._latent = 40
    return {"restorer": found._restorer(MAPS[name])}


def of_dpa(found, options, name):
    model = Autoencoder(options.shape(64))
    return {"encoder": model.encoder, "decoder": model.decoder}


def of_student_teacher(found, options, name):
    tensors = given(options.backbone)
    teacher = BackboneFeatures(options.backbone, options.chosen_layers(), 1, tensors)
    return {"student": found.distillation(teacher, seed=0).student}


def of_synthetic(found, options, name):
    parts = found._segmenter(0)
    return {"restorer": parts.restorer, "finder": parts.finder}


def of_patches(found, options, name):
    parts = found.drawn(0)
    students = parts.students
    named = dict(students.named_children()) if name == "efficient-ad" else {"students": students}
    return {"teachers": parts.teachers, **named}


def of_devnet(found, options, name):
    tensors = given(options.backbone)
    network = found._trained._network_of(tensors, "zeros", seed=0)
    return {"network": network}


NETWORKS = {
    "reconstruction": of_reconstruction,
    "gan": of_gan,
    "ganomaly": of_ganomaly,
    "piad": of_piad,
    "fixed-point-gan": of_fixed_point_gan,
    "density": of_density,
    "feature-reconstruction": of_feature_reconstruction,
    "dpa": of_dpa,
    "student-teacher": of_student_teacher,
    "devnet": of_devnet,
    "deep-geo": lambda found, options, name: {"classifier": found._classifier(0).classifier},
    "deep-svdd": lambda found, options, name: {"encoder": found._ball(0).encoder},
    "deep-sad": lambda found, options, name: {"encoder": found._trained._ball(0).encoder},
    "diffusion": lambda found, options, name: {"denoiser": found._denoiser(0)},
    "one-class": lambda found, options, name: {"head": found._head(VECTORS[name], 10)},
    "contrastive": lambda found, options, name: {"encoder": found._encoder(0)},
    "synthetic": of_synthetic,
    "uninformed-students": of_patches,
    "efficient-ad": of_patches,
    "mil": lambda found, options, name: {"classifier": options.network(VECTORS[name])},
}
OF_TENSORS = {"student-teacher", "devnet"}
"""Detectors whose networks begin with given tensors."""


def given(backbone):
    """Return tensors of a backbone's shapes, of zeros."""
    with torch.device("meta"):
        shapes = random_tensors(backbone, 0)
    return {key: torch.zeros(one.shape, dtype=one.dtype) for key, one in shapes.items()}


def networks(name):
    """Return the networks of a preset by name, most of them without memory for their numbers."""
    found, options = detector(name)
    method = load_preset(name).detector
    with torch.device("cpu" if method in OF_TENSORS else "meta"):
        return NETWORKS[method](found, options, name)


def count(module):
    return sum(one.numel() for one in module.parameters() if one.requires_grad)


def test_every_preset_is_counted_unless_there_is_nothing_to_count():
    frozen = {name for name in preset_names() if load_preset(name).detector in FROZEN}
    left = set(preset_names()) - frozen - OF_ANY_BACKBONE - ELSEWHERE
    assert left == COUNTS.keys()


def double_u_net(*widths, norm):
    """The U-Net that arnet and puzzle-ae were published with: it pools before its convolutions."""
    down = convs(3, 3, widths[0], widths[0], norm=norm)
    down += sum(convs(3, a, b, b, norm=norm) for a, b in pairwise(widths))
    outputs = (*[width // 2 for width in widths[-2:0:-1]], widths[0])
    joined = (2 * widths[-1], *[2 * width for width in widths[-3::-1]])
    up = sum(convs(3, i, i // 2, o, norm=norm) for i, o in zip(joined, outputs, strict=True))
    return down + up + convs(1, widths[0], 3, norm=False)


@pytest.mark.parametrize(
    ("counted", "published"),
    [
        (wide_resnet(8, 10), 10_961_370),  # 11.0 millions in the paper's table
        (wide_resnet(4, 10), 2_748_890),  # 2.7 millions
        (slim_vgg(), 343_984),  # of the authors' code
        (pdn_small(384), 2_694_144),  # 2.7 millions
    ],
)
def test_the_arithmetic_agrees_with_what_is_published(counted, published):
    assert counted == published


def riad_by_others():
    """Two convolutions in each of five stages, four halvings, and two after each enlargement."""
    stages = (64, 128, 256, 512, 512)
    down = convs(3, 3, 64, 64) + sum(convs(4, a, b) + convs(3, b, b) for a, b in pairwise(stages))
    ups = pairwise((512, *stages[::-1][1:]))
    up = sum(convs(4, a, b, norm=False) + convs(3, 2 * b, b, b) for a, b in ups)
    return down + up + convs(3, 64, 3, norm=False)


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("arnet", double_u_net(64, 128, 256, 512, 512, norm=True)),
        ("puzzle-ae", double_u_net(64, 128, 256, 512, 512, norm=False)),
        ("riad", riad_by_others()),
    ],
)
def test_presets_say_how_many_weights_the_published_u_net_has(name, others):
    own = sum(COUNTS[name].values())
    said = f"{own / 1e6:.1f} million weights instead of {others / 1e6:.1f}"
    assert any(said in line for line in load_preset(name).about.adapted)


@pytest.mark.parametrize("name", COUNTS)
def test_networks_have_the_numbers_of_their_layers(name):
    found = {key: count(one) for key, one in networks(name).items() if one is not None}
    assert {key: number for key, number in found.items() if number} == COUNTS[name]


def test_a_preset_says_what_ends_its_training():
    """By default it is the held-out loss; ``anogan`` and others always keep the last weights."""
    silent = []
    for name in preset_names():
        preset = load_preset(name)
        options = build(registry.load(preset.detector).Options, preset.options, source=name)
        said = " ".join([*preset.about.published, *preset.about.adapted])
        says = any(word in said for word in ("stop", "held-out", "last weights"))
        if getattr(options, "keep", "") == "best" and not says:
            silent.append(name)
    assert not silent
