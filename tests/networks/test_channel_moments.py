"""Mean and deviation of channels that are seen part by part."""

import numpy as np
import pytest
import torch

from wsiad.core.errors import DetectorError
from wsiad.networks.channel_moments import ChannelMoments


@pytest.mark.parametrize("shape", [(23, 3), (23, 3, 4, 5)])
def test_parts_give_mean_and_deviation_of_the_whole(shape):
    # The deviation is a millionth of the mean: a mean of squares has no digit of it left.
    values = 1e4 + 0.01 * np.random.default_rng(0).standard_normal(shape)
    moments = ChannelMoments()
    for part in np.split(values, [1, 9]):
        moments.add(torch.from_numpy(part))
    mean, deviation = moments.found()
    axes = tuple(axis for axis in range(len(shape)) if axis != 1)
    np.testing.assert_allclose(mean, values.mean(axis=axes), rtol=1e-6)
    np.testing.assert_allclose(deviation, values.std(axis=axes), rtol=1e-6)


def test_a_channel_that_does_not_vary_is_divided_by_one():
    moments = ChannelMoments()
    moments.add(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    mean, deviation = moments.scaling()
    assert mean.tolist() == [2.0, 5.0]
    assert deviation.tolist() == [1.0, 1.0]
    moments = ChannelMoments()
    moments.add(torch.full((4, 2), 5.0))
    assert moments.scaling() is None


def test_nothing_has_no_mean():
    with pytest.raises(DetectorError, match="there are no tiles"):
        ChannelMoments().found()
