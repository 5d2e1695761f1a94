"""Latents of ``reconstruction`` have the values that their papers' formulas give."""

import math

import numpy as np
import pytest
import torch

from wsiad.detectors.reconstruction.latent_models import (
    AutoregressiveLatent,
    MemoryLatent,
    PlainLatent,
    QuantisedLatent,
    VariationalLatent,
    kullback_leibler,
)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_plain_is_the_identity():
    z = draw(3, 4)
    code = PlainLatent()(z, draw=True)
    assert code.value is z
    assert code.penalty.tolist() == [0, 0, 0]


# --- variational ----------------------------------------------------------------------------


def test_divergence_of_the_prior_is_nothing_and_of_a_shift_half_its_square():
    zero = torch.zeros(2, 3)
    assert kullback_leibler(zero, zero).abs().max() == 0
    mean = draw(2, 3)
    torch.testing.assert_close(kullback_leibler(mean, zero), mean.square() / 2)
    log = torch.tensor([[math.log(4.0)]])
    assert kullback_leibler(torch.zeros(1, 1), log).item() == pytest.approx(
        (4 - 1 - math.log(4)) / 2
    )


@pytest.mark.parametrize(("reduction", "factor"), [("mean", 1 / 5), ("sum", 1)])
@pytest.mark.parametrize("edge", [None, 2])
def test_penalty_is_the_mean_or_the_sum_of_divergences(reduction, factor, edge):
    places = () if edge is None else (edge, edge)
    raw = torch.cat([draw(3, 5, *places), torch.zeros(3, 5, *places)], dim=1)
    found = VariationalLatent(reduction)(raw)
    expected = raw[:, :5].square().flatten(1).sum(dim=1) / 2 * factor
    if reduction == "mean" and edge:
        expected = expected / edge**2
    torch.testing.assert_close(found.penalty, expected)
    torch.testing.assert_close(found.value, raw[:, :5])
    assert found.density.shape == (3, *places)


def test_draws_have_the_mean_and_the_deviation_that_are_stated():
    raw = torch.tensor([[2.0, math.log(9.0)]]).repeat(20_000, 1)
    torch.manual_seed(1)
    found = VariationalLatent("sum")(raw, draw=True).value
    assert found.mean().item() == pytest.approx(2, abs=0.1)
    assert found.std().item() == pytest.approx(3, abs=0.1)


# --- memory ---------------------------------------------------------------------------------


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_a_memory_of_one_returns_it_whatever_it_is_asked(similarity):
    latent = MemoryLatent(1, 4, similarity=similarity)
    for z in (draw(5, 4), draw(5, 4, 2, 2, seed=1) * 100):
        found = latent(z)
        wanted = latent.vectors_[0].detach().view(1, 4, *[1] * (z.ndim - 2)).expand_as(z)
        torch.testing.assert_close(found.value, wanted)
        assert found.penalty.abs().max() < 1e-6


def test_weights_are_those_of_the_cosine_by_hand():
    latent = MemoryLatent(3, 2, shrink=0.0)
    with torch.no_grad():
        latent.vectors_.copy_(torch.tensor([[1.0, 0], [0, 2], [-3, 0]]))
    weights = latent.weights(torch.tensor([[5.0, 0]]))
    expected = np.exp([1, 0, -1]) / np.exp([1, 0, -1]).sum()
    np.testing.assert_allclose(weights.detach().numpy()[0], expected, rtol=1e-6)
    entropy = -(expected * np.log(expected)).sum()
    assert latent(torch.tensor([[5.0, 0]])).penalty.item() == pytest.approx(entropy, rel=1e-5)


def test_small_weights_are_shrunk_and_the_rest_adds_up_to_one():
    latent = MemoryLatent(3, 2, shrink=0.2)
    with torch.no_grad():
        latent.vectors_.copy_(torch.tensor([[1.0, 0], [0, 2], [-3, 0]]))
    found = latent.weights(torch.tensor([[5.0, 0]]))[0].detach().numpy()
    kept = np.exp([1, 0]) / np.exp([1, 0, -1]).sum()  # the third is 0.09
    np.testing.assert_allclose(found, [*kept / kept.sum(), 0], rtol=1e-5)


def test_if_all_weights_are_shrunk_the_largest_remains():
    latent = MemoryLatent(4, 2, shrink=0.9)
    z = draw(6, 2)
    weights = latent.weights(z)
    assert weights.sum(dim=1).tolist() == [1] * 6
    cosine = torch.nn.functional.cosine_similarity(z[:, None], latent.vectors_[None], dim=2)
    assert torch.equal(weights.argmax(dim=1), cosine.argmax(dim=1))


def test_one_hot_similarity_returns_the_row():
    latent = MemoryLatent(3, 3, similarity="dot")
    with torch.no_grad():
        latent.vectors_.copy_(torch.eye(3) * 100)
    torch.testing.assert_close(latent(torch.eye(3)).value, torch.eye(3) * 100)


# --- code book ------------------------------------------------------------------------------


def test_an_output_that_is_a_code_is_returned_exactly():
    latent = QuantisedLatent(7, 3).eval()
    z = latent.codes[[4, 0, 4]]
    found = latent(z)
    assert torch.equal(found.value, z)
    assert found.penalty.abs().max() == 0


def test_a_book_of_one_code_returns_it():
    latent = QuantisedLatent(1, 3).eval()
    found = latent(draw(2, 3, 4, 4))
    assert torch.equal(found.value, latent.codes[0].view(1, 3, 1, 1).expand(2, 3, 4, 4))


def test_gradient_passes_the_book_unchanged():
    latent = QuantisedLatent(5, 3).eval()
    z, slope = draw(2, 3).requires_grad_(), draw(2, 3, seed=1)
    (latent(z).value * slope).sum().backward()
    torch.testing.assert_close(z.grad, slope)


def test_codes_move_to_the_means_of_what_is_near():
    latent = QuantisedLatent(2, 1, decay=0.0)
    latent.codes.copy_(torch.tensor([[0.0], [10.0]]))
    latent.sums.copy_(latent.codes)
    latent(torch.tensor([[1.0], [3.0], [8.0]]))
    torch.testing.assert_close(latent.codes, torch.tensor([[2.0], [8.0]]))
    before = latent.codes.clone()
    latent.eval()(torch.tensor([[5.0]]))
    assert torch.equal(latent.codes, before)  # scoring changes nothing
    latent.train()(torch.tensor([[1.0]]))  # the second code is near to nothing and stays
    torch.testing.assert_close(latent.codes, torch.tensor([[1.0], [8.0]]))


# --- autoregressive -------------------------------------------------------------------------


def test_an_element_is_predicted_from_those_before_it_alone():
    torch.manual_seed(0)
    latent = AutoregressiveLatent(5, bins=4, channels=3, layers=2)
    z = torch.rand(1, 5)
    slopes = torch.autograd.functional.jacobian(latent.logits, z)[0, :, :, 0]  # (5, 4, 5)
    sees = slopes.abs().sum(dim=1) > 0
    assert not sees.triu().any()
    assert sees[torch.ones(5, 5, dtype=torch.bool).tril(-1)].all()


def test_uniform_codes_and_a_constant_estimator_have_the_known_likelihood():
    latent = AutoregressiveLatent(64, bins=100, channels=2, layers=1)
    for parameter in latent.parameters():
        torch.nn.init.zeros_(parameter)
    found = latent(torch.rand(3, 64))
    assert found.penalty.tolist() == pytest.approx([64 * math.log(100)] * 3, rel=1e-5)
    assert 64 * math.log(100) == pytest.approx(294.73, abs=0.01)


def test_the_penalty_reaches_the_encoder_by_the_inputs_of_the_estimator():
    torch.manual_seed(0)
    latent = AutoregressiveLatent(4, bins=3, channels=2, layers=1)
    z = torch.rand(2, 4, requires_grad=True)
    latent(z).penalty.sum().backward()
    assert (z.grad[:, :-1] != 0).all()
    assert (z.grad[:, -1] == 0).all()  # nothing is predicted from the last element


def test_elements_at_the_ends_fall_into_the_first_and_the_last_bin():
    latent = AutoregressiveLatent(2, bins=4, channels=2, layers=1)
    found = latent(torch.tensor([[0.0, 1.0]]))
    logs = latent.logits(torch.tensor([[0.0, 1.0]])).log_softmax(dim=2)[0]
    assert found.penalty.item() == pytest.approx(-(logs[0, 0] + logs[1, 3]).item(), rel=1e-5)
