"""Bags of vectors: order, bags of one, and which vectors a bag's gradient reaches."""

import pytest
import torch

from wsiad.networks.bag_pooling import AttentionOfBag, ExtremesOfBag, HighestOfBag

MAKERS = {
    "max": lambda: HighestOfBag(6),
    "top 3": lambda: HighestOfBag(6, top=3),
    "minmax": lambda: ExtremesOfBag(6, extremes=3, hidden=(5, 4)),
    "attention": lambda: AttentionOfBag(6, hidden=7, attention=5),
}


def made(kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MAKERS[kind]().eval()


def vectors(count, seed=1):
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", MAKERS)
def test_a_bag_of_one_vector_is_the_classifier_of_that_vector(kind):
    network, found = made(kind), vectors(9)
    bags = network([one[None] for one in found])
    torch.testing.assert_close(bags, network.alone(found))
    assert len(bags.unique()) == 9


@pytest.mark.parametrize("kind", MAKERS)
def test_the_order_within_a_bag_does_not_matter(kind):
    network, found = made(kind), vectors(9)
    torch.testing.assert_close(network([found]), network([found.flip(0)]))
    two = network([found, found[:4]])
    torch.testing.assert_close(two, network([found[:4], found]).flip(0))


def reached(kind, count=9):
    """Return which vectors the gradient of a bag reaches, and the values they are ordered by."""
    network, found = made(kind), vectors(count).requires_grad_()
    network([found]).sum().backward()
    rows = found.grad.abs().sum(dim=1) > 0
    values = (network.value(found) if kind == "minmax" else network.classifier(found))[:, 0]
    return rows, values.detach()


def test_the_gradient_reaches_the_chosen_vectors_alone():
    rows, values = reached("max")
    assert rows.nonzero().flatten().tolist() == [int(values.argmax())]
    rows, values = reached("top 3")
    assert set(rows.nonzero().flatten().tolist()) == set(values.topk(3).indices.tolist())
    rows, values = reached("minmax")
    ends = values.topk(3).indices.tolist() + (-values).topk(3).indices.tolist()
    assert set(rows.nonzero().flatten().tolist()) == set(ends)
    assert len(set(ends)) == 6


def test_small_bags_repeat_their_last_vector():
    network, found = made("minmax"), vectors(2)
    values = network.value(found)[:, 0].sort(descending=True).values
    high, low = values.tolist()
    by_hand = torch.tensor([high, low, low, low, high, high])
    torch.testing.assert_close(network([found])[0], network.network(by_hand)[0])


def test_weights_of_attention_add_up_to_one_and_follow_the_vectors():
    network, found = made("attention"), vectors(9)
    weights = network.weights(found)
    assert weights.shape == (9,)
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
    torch.testing.assert_close(network.weights(found.flip(0)), weights.flip(0))
    assert len(weights.unique()) == 9
    torch.testing.assert_close(network.weights(found[:1]), torch.ones(1))


def test_attention_by_hand():
    network, found = made("attention"), vectors(4)
    hidden = (found @ network.hidden.weight.T + network.hidden.bias).clamp(min=0)
    gate = torch.sigmoid(hidden @ network.gate.weight.T + network.gate.bias)
    value = torch.tanh(hidden @ network.tanh.weight.T + network.tanh.bias)
    raw = (value * gate) @ network.attention.weight[0]
    share = raw.exp() / raw.exp().sum()
    logit = (share @ hidden) @ network.classifier.weight[0] + network.classifier.bias[0]
    torch.testing.assert_close(network([found])[0], logit)
