"""Large images by overlapping windows: every pixel once, no seams, statistics of windows only."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dri_iqa.models.windows import in_windows


@pytest.mark.parametrize("size", [(64, 64), (17, 200), (33, 31), (32, 33), (97, 48)])
def test_what_looks_at_single_pixels_is_as_without_windows(size: tuple[int, int]) -> None:
    image_BCHW = torch.rand(2, 3, *size)
    seen: list[tuple[int, ...]] = []

    def network(window_BCHW: Tensor) -> Tensor:
        seen.append(tuple(window_BCHW.shape[2:]))
        return 1 - window_BCHW.square()

    result = in_windows(network, image_BCHW, 32)
    torch.testing.assert_close(result, 1 - image_BCHW.square())
    assert set(seen) == {(min(32, size[0]), min(32, size[1]))}


def test_an_image_no_larger_than_a_window_is_one_pass() -> None:
    image_BCHW = torch.rand(3, 3, 20, 32)
    assert torch.equal(
        in_windows(lambda x: x - x.mean((2, 3), keepdim=True), image_BCHW, 32),
        image_BCHW - image_BCHW.mean((2, 3), keepdim=True),
    )


def test_each_pixel_is_the_mean_over_its_windows_weighted_by_the_distance_to_their_edges() -> None:
    image_BCHW = torch.rand(1, 1, 12, 8)

    def network(window_BCHW: Tensor) -> Tensor:
        return window_BCHW.mean((2, 3), keepdim=True).expand_as(window_BCHW)

    # windows of 8 rows begin at rows 0 and 4; row 5 is the third from the end of one, the second of the other
    first, second = image_BCHW[0, 0, :8].mean(), image_BCHW[0, 0, 4:].mean()
    result = in_windows(network, image_BCHW, 8)[0, 0]
    torch.testing.assert_close(result[5, 3], (3 * first + 2 * second) / 5)
    torch.testing.assert_close(result[0, 0], first)
    torch.testing.assert_close(result[11, 7], second)


def test_edges_are_repeated_up_to_the_multiple_that_a_network_needs() -> None:
    seen: list[Tensor] = []

    def network(window_BCHW: Tensor) -> Tensor:
        seen.append(window_BCHW)
        return window_BCHW + 1

    image_BCHW = torch.rand(1, 3, 18, 30)
    assert torch.equal(in_windows(network, image_BCHW, 32, multiple=8), image_BCHW + 1)
    (given,) = seen
    assert given.shape == (1, 3, 24, 32)
    assert torch.equal(given[..., 18:, 30:], image_BCHW[..., -1:, -1:].expand(1, 3, 6, 2))


def test_no_more_than_sixteen_windows_are_held_at_once() -> None:
    passes: list[int] = []

    def network(window_BCHW: Tensor) -> Tensor:
        passes.append(len(window_BCHW))
        return window_BCHW

    in_windows(network, torch.rand(1, 3, 96, 96), 16)
    assert max(passes) == 16
    assert sum(passes) == 11 * 11
