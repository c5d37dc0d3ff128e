"""What is computed from decoded images, and how many may be held."""

import numpy as np
import pytest

from mp_loop.config import errors
from mp_loop.data import decoding, sources
from tests.support import data_sets


def test_moments_are_per_channel_and_a_constant_channel_is_left_alone():
    images = np.zeros((2, 1, 2, 3), np.uint8)
    images[0, :, :, 0] = 255
    images[..., 1] = 51
    images[:, :, 0, 2] = 255
    mean, std = decoding.moments(images)
    np.testing.assert_allclose(mean, [0.5, 0.2, 0.5], rtol=1e-15)
    np.testing.assert_allclose(std, [0.5, 1.0, 0.5], rtol=1e-15)


@pytest.mark.parametrize(
    "image", [data_sets.IMAGE, data_sets.ANY_IMAGE], ids=["fixed", "any_size"]
)
def test_more_than_the_limit_is_refused(tmp_path, monkeypatch, image):
    data_sets.write(tmp_path, image, data_sets.LABEL, data_sets.pictures(4, 4))
    monkeypatch.setattr(decoding, "MAX_DECODED_BYTES", 4 * 4 * 4 * 3)
    sources.load("made", str(tmp_path))  # Both splits fill it exactly.
    monkeypatch.setattr(decoding, "MAX_DECODED_BYTES", 4 * 4 * 4 * 3 - 1)
    with pytest.raises(errors.DataError, match="at most .* GiB fit.*folder:PATH"):
        sources.load("made", str(tmp_path))
