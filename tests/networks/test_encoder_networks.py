"""Encoders by name: every entry is built, and weights that do not fit exactly are refused."""

from pathlib import Path

import pytest
import torch
from torch import nn

from support.tiny_encoders import REGISTERS, TINY, TRANSFORMER, formula, tiny, weights
from wsiad.core.errors import ConfigError, DetectorError, WeightsError
from wsiad.networks import encoder_network
from wsiad.networks.encoder import Table, read_table, table
from wsiad.networks.features import BackboneFeatures
from wsiad.networks.torchvision_models import torchvision_models

torchvision_models()
pytest.importorskip("timm", reason="the optional dependency timm is not installed")

PUBLISHED = table().encoders
ROOT = Path(__file__).parents[2]


def features(encoder, tensors=None, embedding=None, **options):
    layers = encoder_network.embedding_layers(encoder, embedding or encoder.embedding)
    tensors = weights(encoder) if tensors is None else tensors
    return BackboneFeatures(
        encoder.name, layers, options.pop("places", 1), tensors, encoder=encoder, **options
    )


@pytest.mark.slow
@pytest.mark.parametrize("encoder", PUBLISHED, ids=[one.name for one in PUBLISHED])
def test_every_published_encoder_is_built_as_it_is_stated(encoder):
    with torch.device("meta"):
        network = encoder_network.build(encoder)  # checks parameters, heads, eps, tokens, ...
    layers = encoder_network.embedding_layers(encoder, encoder.embedding)
    modules = dict(network.named_modules())
    widths = {
        "norm": network.num_features, "norm:cls": network.num_features, "layer4": 2048,
        "pooler": encoder.pooler and encoder.pooler.width, "head": encoder.projection,
    }  # fmt: skip
    assert all(layer.removesuffix(":cls") in modules for layer in layers)
    assert sum(widths[layer] for layer in layers) == encoder.dim
    own = encoder.transformer
    if own is not None:
        assert isinstance(network.norm, nn.LayerNorm)
        assert encoder.px % own.patch_px == 0
        if getattr(network, "pos_embed", None) is not None and encoder.positions != "network":
            edge = int(encoder.arguments.get("img_size", encoder.px)) // own.patch_px
            assert network.pos_embed.shape[1] - edge**2 in (0, 1, own.prefix_tokens)


def test_stated_properties_that_a_load_does_not_show_are_checked():
    for changed in ({"heads": 4}, {"eps": 1e-5}, {"activation": "SiLU"}, {"prefix_tokens": 2},
                    {"patch_px": 16}):  # fmt: skip
        (name,) = changed
        with pytest.raises(DetectorError, match=f"{name} .*, not"):
            encoder_network.build(tiny(transformer=TRANSFORMER | changed))
    with pytest.raises(DetectorError, match=r"parameters 19656, not 5"):
        encoder_network.build(tiny(parameters=5))
    with pytest.raises(DetectorError, match="no last normalisation"):
        encoder_network.build(tiny(arguments={**TINY["arguments"], "global_pool": "avg"}))
    with pytest.raises(DetectorError, match=r"does not state its heads, eps, activation"):
        encoder_network.build(tiny(transformer=None, embedding="patch_mean"))
    with pytest.raises(DetectorError, match=r"'Softmax' is not an act_layer.*GELU"):
        encoder_network.build(tiny(arguments={**TINY["arguments"], "act_layer": "Softmax"}))
    with pytest.raises(DetectorError, match="pretrained is not for"):
        encoder_network.build(tiny(arguments={**TINY["arguments"], "pretrained": True}))
    with pytest.raises(DetectorError, match=r"no network 'vit_tinny'"):
        encoder_network.build(tiny(network="vit_tinny"))


SCALE = r"blocks\.0\.ls1\.gamma, blocks\.0\.ls2\.gamma, .* and 1 more are"


def without(part):
    return lambda tensors: {name: one for name, one in tensors.items() if part not in name}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without(".gamma"), SCALE + " missing.*LayerScale"),
        (lambda t: {**t, "extra.weight": torch.zeros(2)}, r"extra\.weight is left over"),
        (lambda t: {**t, "reg_token": torch.zeros(1, 4, 24)}, "reg_token is left over.*registers"),
        (without("blocks.1.attn.proj.bias"), r"blocks\.1\.attn\.proj\.bias is missing"),
        (lambda t: {**t, "norm.weight": torch.zeros(25)}, r"norm\.weight has the shape \(25,\)"),
        (
            lambda t: {**t, "blocks.0.mlp.fc1.weight": t["blocks.0.mlp.fc1.weight"].T},
            r"fc1\.weight has the shape \(24, 96\), not \(96, 24\)",
        ),
        (lambda t: {**t, "pos_embed": torch.zeros(1, 50, 24)}, r"\(1, 50, 24\).*another size"),
        (lambda t: {**t, "norm.bias": torch.zeros(24, dtype=torch.int64)}, "norm.bias holds int64"),
    ],
)
def test_weights_that_are_not_exactly_the_networks_are_refused(change, said):
    encoder = tiny()
    with pytest.raises(WeightsError, match=said):
        encoder_network.fitting(encoder, change(weights(encoder)))


def test_left_over_layer_scale_is_named():
    plain = tiny(arguments={k: v for k, v in TINY["arguments"].items() if k != "init_values"},
                 parameters=19_656 - 96)  # fmt: skip
    with pytest.raises(WeightsError, match=SCALE + " left over.*LayerScale"):
        encoder_network.fitting(plain, weights(tiny()))


def test_what_a_file_may_hold_besides_is_stated():
    encoder = tiny()
    more = {"head.weight": torch.zeros(5, 24), "head.bias": torch.zeros(5),
            "mask_token": torch.zeros(1, 24)}  # fmt: skip
    found, left_off = encoder_network.fitting(encoder, weights(encoder) | more)
    assert found.keys() == weights(encoder).keys()
    assert sorted(left_off) == sorted(more)


@pytest.mark.parametrize("edge", [32, 48])
def test_places_are_patches_and_registers_are_not_among_them(edge):
    """Blocks that change nothing and no positions: a token is the embedding of its patch."""
    encoder = tiny(base=REGISTERS, px=edge)
    tensors = {
        name: torch.zeros_like(one) if name.startswith("blocks.") or name == "pos_embed" else one
        for name, one in weights(encoder).items()
    }
    tensors["norm.weight"], tensors["norm.bias"] = torch.ones(24), torch.zeros(24)
    tensors["reg_token"] = torch.full((1, 4, 24), 1e3) * torch.arange(24)
    images = torch.rand(2, 3, edge, edge, generator=torch.Generator().manual_seed(0))
    grid = edge // 8
    found = features(encoder, tensors, "places", places=grid)(images)
    x = (images - torch.tensor(encoder.mean).view(1, 3, 1, 1)) / torch.tensor(
        encoder.std
    ).view(1, 3, 1, 1)  # fmt: skip
    patches = nn.functional.conv2d(
        x, tensors["patch_embed.proj.weight"], tensors["patch_embed.proj.bias"], stride=8
    )
    expected = nn.functional.layer_norm(patches.permute(0, 2, 3, 1), (24,), eps=1e-6)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    token = nn.functional.layer_norm(tensors["cls_token"][0, 0], (24,), eps=1e-6)
    both = features(encoder, tensors)(images)
    torch.testing.assert_close(both[:, 0, 0, :24], token.expand(2, -1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(both[:, 0, 0, 24:], expected.mean(dim=(1, 2)), rtol=1e-4, atol=1e-4)
    mean = features(encoder, tensors, "patch_mean")(images)
    torch.testing.assert_close(mean[..., :], both[..., 24:])


def test_loaded_features_are_those_of_timms_own_forward():
    encoder = tiny()
    network = features(encoder)
    own = encoder_network.build(encoder)
    own.load_state_dict(weights(encoder))
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(x)[:, 0, 0], own(network.normalised(x)))


def test_features_that_overflow_are_computed_again_in_fp32(caplog):
    encoder = tiny()
    low, full = features(encoder, precision="fp16"), features(encoder)
    images = torch.rand(2, 3, 32, 32)
    near = low(images)
    assert near.dtype == torch.float32
    assert not caplog.records
    torch.testing.assert_close(near, full(images), rtol=0.05, atol=0.05)
    large = weights(encoder)
    for name in ("blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight"):
        large[name] = large[name] * 1e5  # beyond 65,504
    found = features(encoder, large, precision="fp16")(images)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, features(encoder, large)(images))
    assert "not finite; these images are computed again in fp32" in caplog.text


def test_tables_are_checked(tmp_path):
    path = tmp_path / "encoders.yaml"
    for text, said in (
        ("a: {network: resnet10t}", "parameters"),
        ("a: 3", "not a mapping"),
        ("a b: {network: x}", "name"),
        ("a: {name: b, network: x}", "a name twice"),
        ("a: {network: x, parameters: 1, dim: 1, embedding: cls}", "needs a transformer"),
        ("a: {network: x, parameters: 1, dim: 1, embedding: patch_mean, mean: [1, 2, 3]}", "mean"),
        ("a: {network: x, parameters: 1, dim: 1, embedding: patch_mean, sha256: [ab]}", "sha256"),
        ("a: {network: x, parameters: 1, dim: 1, embedding: patch_mean, resize_px: 100}",
         "resize_px is smaller"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(ConfigError, match=said):
            read_table(path)
    with pytest.raises(ConfigError, match="'uni' is taken"):
        Table([*PUBLISHED, tiny("uni")])
    with pytest.raises(ConfigError, match="'wsiad' is taken"):
        Table([tiny("wsiad")])


def test_the_longest_name_owns_a_file():
    found = table()
    owners = {"uni.bin": "uni", "uni": "uni", "UNI_v1.safetensors": "uni", "uni2-h.bin": "uni2-h",
              "unique.bin": None, "virchow2.bin": "virchow2", "conch-v1.5.bin": "conch-v1.5",
              "conch.pth": "conch", "h-optimus-1-copy.bin": "h-optimus-1"}  # fmt: skip
    assert {name: (own := found.owner(name)) and own.name for name in owners} == owners
    assert found.get("UNI").name == "uni"
    assert found.get("midnight").name == "midnight-12k"
    assert found.get("dino") is None


def test_window_and_scale():
    uni, giga, midnight = (table().get(name) for name in ("uni", "gigapath", "midnight"))
    assert uni.window_px(0.5, most=512) == 256
    assert uni.window_px(0.25, most=512) == 512
    assert uni.window_px(0.25, most=256) == 256
    assert giga.resized_px == 256
    assert giga.px == 224
    for px, mpp in ((256, 0.5), (224, 0.5), (512, 0.25), (230, 0.55)):
        assert uni.misfit(px, mpp) == ""
    assert "0.286 µm/px" in uni.misfit(256, 0.25)
    assert "1.14 µm/px" in uni.misfit(256, 1.0)
    assert "have to be enlarged" in uni.misfit(128, 1.0)
    for mpp in (0.25, 0.5, 1.0, 2.0):
        assert midnight.misfit(224, mpp) == ""
        assert midnight.window_px(mpp, most=500) == 224
    assert "µm/px" in midnight.misfit(224, 4.0)
    assert table().get("dinov2-s").misfit(64, 9.0) == ""
    assert table().get("dinov2-s").window_px(9.0, most=64) == 64
    assert formula("a", (2,)).tolist() != formula("b", (2,)).tolist()


def test_the_guide_lists_every_encoder_as_its_entry_states():
    guide = (ROOT / "docs/encoders.md").read_text("utf-8").partition("## The encoders")[2]
    rows = [line for line in guide.partition("Left out")[0].splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == [encoder.name for encoder in PUBLISHED]
    for row, encoder in zip(rows, PUBLISHED, strict=True):
        parts = (f"`{encoder.network}`", f"| {encoder.parameters / 1e6:.1f} |",
                 f"{encoder.dim}, `{encoder.embedding}`", encoder.licence)  # fmt: skip
        assert [part for part in parts if part not in row] == []
        assert ("; gated" in row) == bool(encoder.gated)


def test_a_generic_name_of_timm_offers_the_encoders_with_its_network(caplog):
    name = "timm/vit_small_patch16_224"
    arguments = {**PLAIN, "embed_dim": 24, "num_heads": 3, "depth": 2}
    network = {"arguments": arguments, "layers": ("norm",), "places": 1}
    offered = r"choose it by name: --option backbone=kaiko-vits16 \(or lunit-vits16\)"
    with pytest.raises(WeightsError, match=r"init_values.*" + offered):
        BackboneFeatures(name, tensors=weights(tiny()), **network)
    plain = {key: one for key, one in weights(tiny()).items() if ".gamma" not in key}
    BackboneFeatures(name, tensors=plain, source="some.bin", **network)
    assert "is the network of the encoders kaiko-vits16, lunit-vits16" in caplog.text
    with pytest.raises(WeightsError) as caught:
        BackboneFeatures("resnet18", ("layer1",), 1, {})
    assert "encoder" not in str(caught.value)


PLAIN = {name: one for name, one in TINY["arguments"].items() if name != "init_values"}


@pytest.mark.parametrize(
    ("depth", "chosen"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (12, [3, 7, 11])]
)
def test_layers_at_thirds_of_the_depth_are_each_named_once(depth, chosen):
    names = [f"blocks.{number}.norm1.weight" for number in range(depth)]
    layers = encoder_network.stage_layers(tiny(), names)
    assert layers == tuple(f"blocks.{number}" for number in chosen)
