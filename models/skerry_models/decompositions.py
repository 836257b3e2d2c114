"""Gradients that ONNX has no operator for, written with operators that it has.

Each function takes the arguments of the aten operator of the same name and returns what it returns. All shapes but
the batch are static. Rules that cannot be followed raise :class:`UnsupportedGradientError` with the setting.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._decomp import get_decompositions

aten = torch.ops.aten
#: Decompositions of torch's own that turn norms and softmax into plain arithmetic.
_TORCH_OPERATORS = (
    "_native_batch_norm_legit_functional",
    "native_group_norm",
    "native_group_norm_backward",
    "native_layer_norm",
    "native_layer_norm_backward",
    "native_batch_norm_backward",
    "_softmax",
    "_log_softmax",
    "_softmax_backward_data",
    "_log_softmax_backward_data",
    "nll_loss_forward",
    "nll_loss_backward",
    "threshold_backward",
    "hardtanh_backward",
    "gelu_backward",
)


class UnsupportedGradientError(Exception):
    """A gradient that has no plain ONNX form here.

    Attributes:
        operator: The aten operator.
        reason: Which setting is not supported.
    """

    def __init__(self, operator: str, reason: str) -> None:
        self.operator = operator
        self.reason = reason
        super().__init__(f"{operator}: {reason}")


def _per_axis(values: Sequence[int], axes: int) -> list[int]:
    return list(values) * axes if len(values) == 1 else list(values)


def convolution_backward(
    grad_output: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Gradients of a convolution over any number of spatial axes.

    The input's gradient is a transposed convolution. The weight's gradient is one matrix product per group: of the
    output's gradient with the input shifted by each kernel offset (strided slices, stacked). The bias's is a sum.

    Args:
        grad_output: float [N, O, *out].
        x: float [N, C, *in].
        weight: float [O, C / groups, *kernel].
        bias_sizes: Unused; the mask says whether there is a bias.
        stride: Per axis, or one for all.
        padding: Per axis, or one for all.
        dilation: Per axis, or one for all.
        transposed: Must be False.
        output_padding: Unused for plain convolutions.
        groups: Divides C and O.
        output_mask: Which of the three gradients are wanted.

    Raises:
        UnsupportedGradientError: The convolution is transposed.
    """
    if transposed:
        raise UnsupportedGradientError("convolution_backward", "transposed convolutions are not supported")
    axes = weight.dim() - 2
    stride, padding, dilation = (_per_axis(values, axes) for values in (stride, padding, dilation))
    kernel, inner, outer = list(weight.shape[2:]), list(x.shape[2:]), list(grad_output.shape[2:])
    grad_x = grad_weight = grad_bias = None
    if output_mask[2]:
        grad_bias = grad_output.sum([0, *range(2, 2 + axes)])
    if output_mask[0]:
        # Input samples that no kernel position reaches get no gradient: the transposed convolution must still
        # cover them.
        uncovered = [
            inner[axis]
            - ((outer[axis] - 1) * stride[axis] - 2 * padding[axis] + dilation[axis] * (kernel[axis] - 1) + 1)
            for axis in range(axes)
        ]
        grad_x = _transposed(grad_output, weight, stride, padding, dilation, uncovered, groups)
    if output_mask[1]:
        padded = x
        if any(padding):
            margins = [margin for amount in reversed(padding) for margin in (amount, amount)]
            padded = aten.constant_pad_nd.default(x, margins, 0.0)
        shifted = []
        for offset in itertools.product(*(range(size) for size in kernel)):
            part = padded
            for axis in range(axes):
                start = offset[axis] * dilation[axis]
                stop = start + (outer[axis] - 1) * stride[axis] + 1
                part = aten.slice.Tensor(part, 2 + axis, start, stop, stride[axis])
            shifted.append(part.transpose(0, 1))
        channels, outputs = x.shape[1], weight.shape[0]
        columns = torch.stack(shifted, 1).reshape(groups, (channels // groups) * len(shifted), -1)
        rows = grad_output.transpose(0, 1).reshape(groups, outputs // groups, -1)
        grad_weight = torch.bmm(rows, columns.transpose(1, 2)).reshape(weight.shape)
    return grad_x, grad_weight, grad_bias


def _transposed(
    grad_output: torch.Tensor,
    weight: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    uncovered: Sequence[int],
    groups: int,
) -> torch.Tensor:
    """Transposed convolution whose output ends with ``uncovered`` extra samples per axis.

    Torch bounds ``output_padding`` by stride and dilation; more than that is appended as zeros.
    """
    axes = len(stride)
    allowed = [min(uncovered[axis], max(stride[axis], dilation[axis]) - 1) for axis in range(axes)]
    grad_x = aten.convolution.default(grad_output, weight, None, stride, padding, dilation, True, allowed, groups)
    missing = [uncovered[axis] - allowed[axis] for axis in range(axes)]
    if any(missing):
        margins = [margin for amount in reversed(missing) for margin in (0, amount)]
        grad_x = aten.constant_pad_nd.default(grad_x, margins, 0.0)
    return grad_x


def max_pool2d_with_indices_backward(
    grad_output: torch.Tensor,
    x: torch.Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    indices: torch.Tensor,
) -> torch.Tensor:
    """Gradient of 2-D max pooling (1-D pooling reaches here with a kernel of 1 x k).

    Windows that tile the input exactly take a reshape and a one-hot; every other geometry (overlap, gaps, padding,
    dilation, ceil mode) takes the general route. The first largest value of a window wins, as in the forward pass.

    Args:
        grad_output: float [N, C, out_h, out_w].
        x: float [N, C, h, w]; the input of the forward pass.
        kernel_size: Per axis, or one for both.
        stride: Per axis, or one for both; empty means the kernel.
        padding: Per axis, or one for both.
        dilation: Per axis, or one for both.
        ceil_mode: Already expressed by the shape of ``grad_output``.
        indices: Unused: computing them again is cheaper than a scatter.
    """
    kernel = _per_axis(kernel_size, 2)
    steps = _per_axis(stride, 2) if len(stride) else kernel
    margins, spread = _per_axis(padding, 2), _per_axis(dilation, 2)
    outer = list(grad_output.shape[2:])
    tiles = steps == kernel and not any(margins) and spread == [1, 1]
    if tiles and all(outer[axis] * kernel[axis] == x.shape[2 + axis] for axis in range(2)):
        return _tiled_max_backward(grad_output, x, kernel)
    return _general_max_backward(grad_output, x, kernel, steps, margins, spread)


def _one_hot_of_largest(stacked: torch.Tensor, grad_output: torch.Tensor) -> torch.Tensor:
    """[..., K] values and [...] gradients -> [..., K], the gradient where the first largest value is."""
    largest = stacked.argmax(-1, keepdim=True)
    position = torch.arange(stacked.shape[-1], device=stacked.device)
    return (largest == position).to(grad_output.dtype) * grad_output.unsqueeze(-1)


def _tiled_max_backward(grad_output: torch.Tensor, x: torch.Tensor, kernel: list[int]) -> torch.Tensor:
    batch, channels = x.shape[:2]
    rows, columns = grad_output.shape[2:]
    tiles = x.reshape(batch, channels, rows, kernel[0], columns, kernel[1]).permute(0, 1, 2, 4, 3, 5)
    spread = _one_hot_of_largest(tiles.reshape(batch, channels, rows, columns, kernel[0] * kernel[1]), grad_output)
    back = spread.reshape(batch, channels, rows, columns, kernel[0], kernel[1]).permute(0, 1, 2, 4, 3, 5)
    return back.reshape(x.shape)


def _general_max_backward(
    grad_output: torch.Tensor,
    x: torch.Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> torch.Tensor:
    """Per kernel offset: where it won, the gradient, spread out by the stride and moved to the offset; summed."""
    height, width = x.shape[2:]
    outer = list(grad_output.shape[2:])
    reach = [(outer[axis] - 1) * stride[axis] + dilation[axis] * (kernel[axis] - 1) + 1 for axis in range(2)]
    after = [max(0, reach[axis] - x.shape[2 + axis] - padding[axis]) for axis in range(2)]
    lowest = torch.finfo(x.dtype).min
    padded = aten.constant_pad_nd.default(x, [padding[1], after[1], padding[0], after[0]], lowest)
    offsets = [(row * dilation[0], column * dilation[1]) for row in range(kernel[0]) for column in range(kernel[1])]
    windows = []
    for top, left in offsets:
        part = aten.slice.Tensor(padded, 2, top, top + (outer[0] - 1) * stride[0] + 1, stride[0])
        windows.append(aten.slice.Tensor(part, 3, left, left + (outer[1] - 1) * stride[1] + 1, stride[1]))
    won = _one_hot_of_largest(torch.stack(windows, -1), grad_output)
    full = list(padded.shape[2:])
    moved = []
    for index, (top, left) in enumerate(offsets):
        share = _spread(_spread(won[..., index], 2, stride[0]), 3, stride[1])
        below, right = full[0] - top - share.shape[2], full[1] - left - share.shape[3]
        moved.append(aten.constant_pad_nd.default(share, [left, right, top, below], 0.0))
    total = torch.stack(moved, 0).sum(0)
    return total[:, :, padding[0] : padding[0] + height, padding[1] : padding[1] + width]


def _spread(values: torch.Tensor, axis: int, stride: int) -> torch.Tensor:
    """Put ``stride`` - 1 zeros between neighbours along ``axis`` (2 or 3 of 4)."""
    if stride == 1:
        return values
    count = values.shape[axis]
    zeros = [0, 0] * (3 - axis) + [0, stride - 1]
    wide = aten.constant_pad_nd.default(values.unsqueeze(axis + 1), zeros, 0.0)
    shape = list(values.shape)
    shape[axis] = count * stride
    return wide.reshape(shape).narrow(axis, 0, (count - 1) * stride + 1)


def avg_pool2d_backward(
    grad_output: torch.Tensor,
    x: torch.Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> torch.Tensor:
    """Gradient of average pooling whose windows do not overlap: every sample of a window gets the same share.

    Args:
        grad_output: float [N, C, out_h, out_w].
        x: float [N, C, h, w]; only its shape matters.
        kernel_size: Per axis, or one for both.
        stride: Must be the kernel, or empty.
        padding: Must be zero.
        ceil_mode: Must be False.
        count_include_pad: Without padding it changes nothing.
        divisor_override: Divisor instead of the size of the window.

    Raises:
        UnsupportedGradientError: Windows overlap, or are padded.
    """
    kernel = _per_axis(kernel_size, 2)
    if len(stride) and _per_axis(stride, 2) != kernel:
        raise UnsupportedGradientError("avg_pool2d_backward", f"stride {list(stride)} must be the kernel {kernel}")
    if any(padding) or ceil_mode:
        raise UnsupportedGradientError("avg_pool2d_backward", "padding and ceil mode are not supported")
    batch, channels, rows, columns = grad_output.shape
    share = grad_output / float(divisor_override or kernel[0] * kernel[1])
    wide = share.reshape(batch, channels, rows, 1, columns, 1).expand(-1, -1, -1, kernel[0], -1, kernel[1])
    tiled = wide.reshape(batch, channels, rows * kernel[0], columns * kernel[1])
    below, right = x.shape[2] - rows * kernel[0], x.shape[3] - columns * kernel[1]
    return aten.constant_pad_nd.default(tiled, [0, right, 0, below], 0.0) if below or right else tiled


def decomposition_table() -> dict[Any, Callable[..., Any]]:
    """Table for ``ExportedProgram.run_decompositions``: torch's for norms and softmax, ours for the rest."""
    table: dict[Any, Callable[..., Any]] = dict(get_decompositions([getattr(aten, name) for name in _TORCH_OPERATORS]))
    table[aten.convolution_backward.default] = convolution_backward
    table[aten.max_pool2d_with_indices_backward.default] = max_pool2d_with_indices_backward
    table[aten.avg_pool2d_backward.default] = avg_pool2d_backward
    return table
