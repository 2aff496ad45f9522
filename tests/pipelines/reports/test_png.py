from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.reports.html import encode_png


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_pixels_come_back(channels, mode):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (channels, 5, 7), generator=generator, dtype=torch.uint8)
    picture = Image.open(io.BytesIO(encode_png(pixels)))
    picture.verify()
    picture = Image.open(io.BytesIO(encode_png(pixels)))
    assert picture.mode == mode
    expected = pixels[0] if channels == 1 else pixels.permute(1, 2, 0)
    assert np.array_equal(np.asarray(picture), expected.numpy())


def test_other_channels_are_refused():
    with pytest.raises(ValueError, match="1 or 3"):
        encode_png(torch.zeros(2, 4, 4, dtype=torch.uint8))
