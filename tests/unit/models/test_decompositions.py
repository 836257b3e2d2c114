from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional

from skerry_models.decompositions import (
    UnsupportedGradientError,
    avg_pool2d_backward,
    convolution_backward,
    max_pool2d_with_indices_backward,
)

CONVOLUTION = {1: functional.conv1d, 2: functional.conv2d}


def close(ours: torch.Tensor, reference: torch.Tensor) -> None:
    assert ours.shape == reference.shape
    torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "kernel"),
    [(*rest, 3) for rest in itertools.product((1, 2, 3), (0, 1, 2), (1, 2))]
    + [(1, 0, 1, 1), (4, 0, 1, 1), (5, 2, 1, 2)],
)
def test_convolution_backward_agrees_with_autograd(
    axes: int, groups: int, stride: int, padding: int, dilation: int, kernel: int
) -> None:
    generator = torch.Generator().manual_seed(stride + 10 * padding + 100 * dilation)
    sizes = [11, 8][:axes]
    x = torch.randn(3, 4, *sizes, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, 4 // groups, *[kernel] * axes, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(8, generator=generator, dtype=torch.float64, requires_grad=True)
    output = CONVOLUTION[axes](x, weight, bias, stride, padding, dilation, groups)
    grad_output = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    expected = torch.autograd.grad(output, (x, weight, bias), grad_output)
    geometry = [stride] * axes, [padding] * axes, [dilation] * axes, False, [0] * axes, groups
    results = convolution_backward(grad_output, x.detach(), weight.detach(), [8], *geometry, [True, True, True])
    for ours, reference in zip(results, expected, strict=True):
        assert ours is not None
        close(ours, reference)


def test_different_settings_per_axis() -> None:
    x = torch.randn(2, 3, 9, 14, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    output = functional.conv2d(x, weight, None, (3, 1), (1, 2), (1, 2))
    grad_output = torch.randn_like(output)
    expected = torch.autograd.grad(output, (x, weight), grad_output)
    results = convolution_backward(
        grad_output, x.detach(), weight.detach(), None, (3, 1), (1, 2), (1, 2), False, (0, 0), 1, (True, True, False)
    )
    assert results[2] is None
    for ours, reference in zip(results[:2], expected, strict=True):
        assert ours is not None
        close(ours, reference)


def test_only_wanted_gradients_are_computed() -> None:
    x, weight = torch.randn(1, 1, 5), torch.randn(1, 1, 3)
    results = convolution_backward(
        torch.randn(1, 1, 3), x, weight, None, [1], [0], [1], False, [0], 1, [False, False, False]
    )
    assert results == (None, None, None)


def test_transposed_convolutions_are_refused() -> None:
    with pytest.raises(UnsupportedGradientError, match="transposed"):
        convolution_backward(
            torch.randn(1, 1, 3),
            torch.randn(1, 1, 5),
            torch.randn(1, 1, 3),
            None,
            [1],
            [0],
            [1],
            True,
            [0],
            1,
            [True] * 3,
        )


POOLS = [
    # size, kernel, stride, padding, dilation, ceil
    ((8, 8), (2, 2), (2, 2), (0, 0), (1, 1), False),
    ((6, 9), (2, 3), (), (0, 0), (1, 1), False),
    ((1, 12), (1, 4), (1, 4), (0, 0), (1, 1), False),
    ((9, 9), (2, 2), (2, 2), (0, 0), (1, 1), False),
    ((9, 9), (2, 2), (2, 2), (0, 0), (1, 1), True),
    ((8, 7), (3, 3), (2, 2), (1, 1), (1, 1), False),
    ((8, 7), (3, 3), (1, 1), (1, 1), (1, 1), False),
    ((9, 11), (2, 3), (3, 4), (0, 0), (1, 1), False),
    ((10, 10), (3, 2), (2, 3), (1, 0), (2, 1), False),
    ((1, 13), (1, 3), (1, 2), (0, 1), (1, 2), True),
]


@pytest.mark.parametrize(("size", "kernel", "stride", "padding", "dilation", "ceil"), POOLS)
@pytest.mark.parametrize("ties", [False, True])
def test_max_pool_backward_agrees_with_autograd(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, ...],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    ceil: bool,
    ties: bool,
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64)
    if ties:
        x = torch.round(x)  # equal values: the first of a window wins
    x.requires_grad_(True)
    output, indices = functional.max_pool2d(
        x, kernel, stride or None, padding, dilation, ceil_mode=ceil, return_indices=True
    )
    grad_output = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    (expected,) = torch.autograd.grad(output, x, grad_output)
    close(
        max_pool2d_with_indices_backward(grad_output, x.detach(), kernel, stride, padding, dilation, ceil, indices),
        expected,
    )


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "divisor"),
    [
        ((8, 6), (2, 3), (2, 3), None),
        ((1, 16), (1, 16), (), None),
        ((9, 7), (2, 2), (2, 2), None),
        ((4, 4), (2, 2), (2, 2), 3),
    ],
)
def test_average_pool_backward_agrees_with_autograd(
    size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, ...], divisor: int | None
) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    output = functional.avg_pool2d(x, kernel, stride or None, divisor_override=divisor)
    grad_output = torch.randn_like(output)
    (expected,) = torch.autograd.grad(output, x, grad_output)
    close(avg_pool2d_backward(grad_output, x.detach(), kernel, stride, (0, 0), False, True, divisor), expected)


@pytest.mark.parametrize(
    ("stride", "padding", "ceil", "reason"),
    [((1, 1), (0, 0), False, "stride"), ((2, 2), (1, 1), False, "padding"), ((2, 2), (0, 0), True, "ceil")],
)
def test_other_average_pools_are_refused(
    stride: tuple[int, int], padding: tuple[int, int], ceil: bool, reason: str
) -> None:
    x = torch.zeros(1, 1, 4, 4)
    with pytest.raises(UnsupportedGradientError, match=reason):
        avg_pool2d_backward(torch.zeros(1, 1, 2, 2), x, (2, 2), stride, padding, ceil, True, None)
