"""Weights in the layouts of other libraries give the features that those libraries compute.

``encoder_layouts.json`` holds names, shapes and outputs of tiny networks of transformers 4.57.6
(ViT, DINOv2 with and without registers, CLIP) and of timm 0.5.4 (Swin with CTransPath's stem),
whose weights and image are given by :func:`support.tiny_encoders.formula`.
"""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from support.tiny_encoders import REGISTERS, TINY, TRANSFORMER, formula, tiny, weights
from wsiad.core.errors import WeightsError
from wsiad.networks import encoder_network
from wsiad.networks.encoder_network import Pooler
from wsiad.networks.features import BackboneFeatures
from wsiad.networks.key_formats import translated
from wsiad.networks.torchvision_models import torchvision_models

torchvision_models()
pytest.importorskip("timm", reason="the optional dependency timm is not installed")

LAYOUTS = json.loads((Path(__file__).parent / "encoder_layouts.json").read_text())
UNCHANGED = {"mean": [0, 0, 0], "std": [1, 1, 1]}
SIZES = TINY["arguments"]
PLAIN = {name: one for name, one in SIZES.items() if name != "init_values"}
GATED = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU", "mlp_ratio": 128 / 24}
SILU = TRANSFORMER | {"activation": "SiLU"}

ENCODERS = {
    "hf-vit": tiny(keys=["hf-vit"], arguments=PLAIN, parameters=19_560, **UNCHANGED),
    "hf-dinov2": tiny(keys=["hf-dinov2"], **UNCHANGED),
    "hf-dinov2-swiglu": tiny(
        keys=["hf-dinov2"], arguments=SIZES | GATED, transformer=SILU, parameters=19_720,
        **UNCHANGED,
    ),
    "hf-dinov2-registers": tiny(
        base=REGISTERS, keys=["hf-dinov2"], arguments=REGISTERS["arguments"] | GATED,
        transformer=SILU | {"prefix_tokens": 5}, parameters=19_792, **UNCHANGED,
    ),
    "hf-dinov2-larger": tiny(keys=["hf-dinov2"], positions="bicubic", **UNCHANGED),
    "hf-clip": tiny(
        keys=["hf-clip"], network="vit_base_patch32_clip_quickgelu_224", arguments=PLAIN,
        projection=16, parameters=19_984, dim=16,
        transformer=TRANSFORMER | {"eps": 1e-5, "activation": "QuickGELU"}, **UNCHANGED,
    ),
    "ctranspath": tiny(
        network="swin_tiny_patch4_window7_224", stem="convolutions", keys=["ctranspath"],
        arguments={"img_size": 112, "embed_dim": 24}, transformer=None, embedding="patch_mean",
        parameters=1, dim=48, px=112, **UNCHANGED,
    ),
}  # fmt: skip


def stored(name):
    return {key: formula(key, tuple(shape)) for key, shape in LAYOUTS[name]["shapes"].items()}


def vector(encoder, tensors, embedding):
    layers = encoder_network.embedding_layers(encoder, embedding)
    network = BackboneFeatures(encoder.name, layers, 1, tensors, encoder=encoder)
    return network(formula("image", (1, 3, encoder.px, encoder.px), scale=1.0))[0, 0, 0]


@pytest.mark.parametrize("name", [name for name in ENCODERS if name != "ctranspath"])
def test_features_are_those_of_transformers(name):
    encoder = ENCODERS[name]
    tensors, _ = encoder_network.fitting(encoder, stored(name))
    expected = torch.tensor(LAYOUTS[name]["embedding"])
    torch.testing.assert_close(vector(encoder, tensors, "cls"), expected, rtol=1e-4, atol=2e-5)
    if name != "hf-clip":
        mean = torch.tensor(LAYOUTS[name]["patch_mean"])
        found = vector(encoder, tensors, "patch_mean")
        torch.testing.assert_close(found, mean, rtol=1e-4, atol=2e-5)


def test_features_are_those_of_ctranspath(monkeypatch):
    from wsiad.networks import _timm

    made = _timm.made
    lists = {"depths": (2, 2), "num_heads": (2, 3)}  # which a table cannot hold
    monkeypatch.setattr(_timm, "made", lambda name, given: made(name, {**given, **lists}))
    encoder = ENCODERS["ctranspath"]
    with torch.device("meta"):
        network = made(encoder.network, {**encoder_network._with_classes(encoder, {
            "img_size": 112, "embed_dim": 24}), **lists})  # fmt: skip
    count = sum(p.numel() for p in network.parameters())
    encoder = encoder.model_copy(update={"parameters": count})
    tensors, left_off = encoder_network.fitting(encoder, stored("ctranspath"))
    assert all(n.endswith(("attn_mask", "relative_position_index", "num_batches_tracked"))
               for n in left_off)  # fmt: skip
    expected = torch.tensor(LAYOUTS["ctranspath"]["patch_mean"])
    found = vector(encoder, tensors, "patch_mean")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


def original(tensors, *, chunks):
    """Return tensors by timm's names in the layout of the DINOv2 repository."""
    out = {"teacher.backbone.mask_token": torch.zeros(1, 24),
           "teacher.dino_head.mlp.0.weight": torch.zeros(3, 3)}  # fmt: skip
    for name, one in tensors.items():
        new = name.replace("reg_token", "register_tokens")
        new = new.replace(".mlp.fc1.", ".mlp.w12.").replace(".mlp.fc2.", ".mlp.w3.")
        if chunks and new.startswith("blocks."):
            new = "blocks.0." + new.removeprefix("blocks.")
        out[f"teacher.backbone.{new}"] = one
    return out


@pytest.mark.parametrize("chunks", [True, False])
def test_the_dinov2_repositorys_names_and_class_position(chunks):
    encoder = ENCODERS["hf-dinov2-registers"].model_copy(update={"keys": ("timm", "dinov2")})
    theirs = weights(encoder)
    position = formula("position of the class token", (1, 1, 24))
    theirs["cls_token"] = theirs["cls_token"] - position
    theirs["pos_embed"] = torch.cat([position, theirs["pos_embed"]], dim=1)
    found, left_off = encoder_network.fitting(encoder, original(theirs, chunks=chunks))
    assert sorted(left_off) == ["teacher.backbone.mask_token", "teacher.dino_head.mlp.0.weight"]
    for name, expected in weights(encoder).items():
        torch.testing.assert_close(found[name], expected)


@pytest.mark.parametrize("layout", ["linear", "attention"])
def test_conchs_pooler_in_both_of_its_layouts(layout):
    encoder = tiny(keys=["conch"], arguments=PLAIN, parameters=19_560, dim=16,
                   pooler={"width": 16, "heads": 4})  # fmt: skip
    trunk = {f"visual.trunk.{n}": t for n, t in weights(encoder).items() if "pooler" not in n}
    part = "visual.attn_pool_contrast."
    ours = {"query": (1, 16), "ln_q.weight": (16,), "ln_q.bias": (16,), "ln_k.weight": (24,),
            "ln_k.bias": (24,)}  # fmt: skip
    pooler = {part + name: formula(name, shape) for name, shape in ours.items()}
    pooler |= {f"visual.ln_contrast.{n}": formula(n, (16,)) for n in ("weight", "bias")}
    theirs = nn.MultiheadAttention(16, 4, kdim=24, vdim=24)
    state = {n: formula(n, tuple(t.shape)) for n, t in theirs.state_dict().items()}
    if layout == "linear":  # without biases
        state |= {n: torch.zeros_like(t) for n, t in state.items() if "bias" in n}
        pooler[part + "to_q.weight"] = state["q_proj_weight"]
        pooler[part + "to_kv.weight"] = torch.cat([state["k_proj_weight"], state["v_proj_weight"]])
        pooler[part + "to_out.weight"] = state["out_proj.weight"]
    else:
        pooler |= {f"{part}attn.{name}": tensor for name, tensor in state.items()}
    theirs.load_state_dict(state)
    rest = {"text.cls_emb": torch.zeros(3), "logit_scale": torch.zeros(()),
            "visual.attn_pool_caption.query": torch.zeros(2, 2),
            "visual.proj_contrast": torch.zeros(16, 16)}  # fmt: skip
    tensors, left_off = encoder_network.fitting(encoder, trunk | pooler | rest)
    assert sorted(left_off) == sorted(rest)
    network = BackboneFeatures("tiny", ("pooler", "norm"), 1, tensors, encoder=encoder)
    image = network.normalised(torch.rand(2, 3, 32, 32))
    found, _ = network.maps(image)
    whole = encoder_network.loaded(encoder, tensors)
    with torch.no_grad():
        tokens = whole.forward_features(image)
        layer = nn.functional.layer_norm
        keys = layer(tokens, (24,), pooler[part + "ln_k.weight"], pooler[part + "ln_k.bias"])
        query = layer(pooler[part + "query"], (16,), pooler[part + "ln_q.weight"],
                      pooler[part + "ln_q.bias"])  # fmt: skip
        out = theirs(query[:, None].repeat(1, 2, 1), keys.transpose(0, 1), keys.transpose(0, 1))[0]
        expected = layer(out[0], (16,), pooler["visual.ln_contrast.weight"],
                         pooler["visual.ln_contrast.bias"])  # fmt: skip
    torch.testing.assert_close(found[:, :, 0, 0], expected, rtol=1e-4, atol=1e-5)
    assert isinstance(whole.pooler, Pooler)


RENAMED_IN_5 = {
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "output.dense": "o_proj",
    "mlp.weights_out": "mlp.down_proj",
}


def test_a_file_of_the_newer_transformers_is_read():
    """Version 5 names the layers otherwise and keeps gate and value apart."""
    renamed = {}
    for name, one in stored("hf-dinov2-swiglu").items():
        new = name.replace("encoder.layer.", "layers.").replace(
            "attention.attention.", "attention."
        )
        for old, now in RENAMED_IN_5.items():
            new = new.replace(old, now)
        if "mlp.weights_in" in new:
            gate, up = one.chunk(2)
            renamed[new.replace("weights_in", "gate_proj")] = gate
            renamed[new.replace("weights_in", "up_proj")] = up
        else:
            renamed[new] = one
    encoder = ENCODERS["hf-dinov2-swiglu"]
    now, _ = encoder_network.fitting(encoder, renamed)
    then, _ = encoder_network.fitting(encoder, stored("hf-dinov2-swiglu"))
    assert now.keys() == then.keys()
    assert all(torch.equal(now[name], then[name]) for name in then)


def test_parts_that_cannot_be_joined_are_refused():
    partial = stored("hf-vit")
    del partial["encoder.layer.1.attention.attention.key.weight"]
    with pytest.raises(WeightsError, match=r"blocks\.1\.attn\.qkv\.weight has only the parts q, v"):
        translated(partial, "hf-vit")
    twice = {"norm.weight": torch.zeros(2), "backbone.norm.weight": torch.zeros(2)}
    with pytest.raises(WeightsError, match=r"are both norm\.weight"):
        translated(twice, "dinov2")


def test_positions_of_another_grid_are_resampled_only_where_the_entry_says_so():
    with pytest.raises(WeightsError, match=r"pos_embed has the shape \(1, 37, 24\).*another size"):
        encoder_network.fitting(ENCODERS["hf-dinov2"], stored("hf-dinov2-larger"))
    follows = tiny(positions="network")
    larger = weights(follows) | {"pos_embed": formula("pos_embed", (1, 37, 24))}
    found, _ = encoder_network.fitting(follows, larger)
    assert found["pos_embed"].shape == (1, 37, 24)
    assert torch.isfinite(vector(follows, found, "cls")).all()
    with pytest.raises(WeightsError, match="33 patches, which is no square"):
        encoder_network.fitting(follows, larger | {"pos_embed": torch.zeros(1, 34, 24)})
