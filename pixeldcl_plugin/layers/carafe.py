"""CARAFE: upsampling with kernels predicted from the content, in plain torch.

Source: Wang, Chen, Xu, Liu, Loy, Lin, "CARAFE: Content-Aware ReAssembly of FEatures" (arXiv 1905.02188),
Section 3: kernel prediction module and content-aware reassembly module.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .common import (
    Conv,
    UpsampleLayer,
    channel_change,
    check_arguments,
    check_input,
    check_odd,
    no_autocast,
    pixel_shuffle,
)
from .interleave import being_traced, empty_upsampled

__all__ = ["TorchCARAFE", "reassemble"]

#: Bytes of gathered windows held at a time. On a CPU they should stay in the cache; a GPU wants few calls.
_CHUNK_BYTES = {"cpu": 2**20}
_CHUNK_BYTES_ELSEWHERE = 2**28


class TorchCARAFE(UpsampleLayer):
    """Every output pixel is a weighted mean of a window of the input, with weights made from the content.

    A 1x1 convolution compresses the features, a convolution of size ``encoder_kernel`` makes
    ``up_kernel**2`` weights for each output pixel from them, a softmax normalises these.

    Args:
        in_channels: Channels of the input. A 1x1 convolution before the upsampling makes ``out_channels``
            of them where they differ.
        out_channels: Channels C of the output.
        up_kernel: Size of the window, odd.
        encoder_kernel: Size of the convolution that makes the weights, odd.
        compressed_channels: Channels that it sees.
        scale_factor: 2; there for configs that name it.

    Shape:
        ``(N, in_channels, H, W)`` -> ``(N, out_channels, 2H, 2W)``, in the memory format of the input.

    Raises:
        ValueError: If an argument is none of the above; the message names the value.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        up_kernel: int = 5,
        encoder_kernel: int = 3,
        compressed_channels: int = 64,
        scale_factor: int = 2,
    ) -> None:
        super().__init__()
        check_arguments(
            scale_factor,
            in_channels=in_channels,
            out_channels=out_channels,
            compressed_channels=compressed_channels,
        )
        check_odd("up_kernel", up_kernel)
        check_odd("encoder_kernel", encoder_kernel)
        self.in_channels = in_channels
        self.up_kernel = up_kernel
        self.project = channel_change(in_channels, out_channels)
        self.compress = Conv(out_channels, compressed_channels, bias=True)
        self.encode = Conv(compressed_channels, 4 * up_kernel**2, encoder_kernel, bias=True)
        nn.init.xavier_uniform_(self.compress.weight)
        nn.init.normal_(self.encode.weight, std=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """Upsample ``(N, in_channels, H, W)`` to ``(N, out_channels, 2H, 2W)``.

        Raises:
            ValueError: If ``x`` has another shape.
        """
        check_input(self, x, self.in_channels)
        x = self.project(x)
        return reassemble(x, self.reassembly_kernels(x))

    def reassembly_kernels(self, x: Tensor) -> Tensor:
        """Predict the kernels for features ``x`` of ``(N, C, H, W)``.

        Returns:
            Weights of shape ``(N, up_kernel**2, 4, H, W)``: taps row by row, then the phases (0, 0),
            (0, 1), (1, 0), (1, 1) of the output. Those of an output pixel are positive and sum to one.
        """
        logits = self.encode(self.compress(x))
        return logits.unflatten(1, (self.up_kernel**2, 4)).softmax(dim=1)


def reassemble(x: Tensor, kernels: Tensor) -> Tensor:
    """Make each output pixel from a window of the input around its source, with a kernel of its own.

    ``out[:, :, 2i + a, 2j + b]`` is the sum over the taps (dy, dx) of
    ``kernels[:, (dy, dx), (a, b), i, j] * x[:, :, i + dy, j + dx]``, with zeros outside of the map.

    Args:
        x: Features, ``(N, C, H, W)``.
        kernels: Weights, ``(N, k * k, 4, H, W)`` with k odd, as in :meth:`TorchCARAFE.reassembly_kernels`.

    Returns:
        Tensor of shape ``(N, C, 2H, 2W)`` in the dtype and memory format of ``x``.
    """
    with no_autocast(x.device):
        kernels = kernels.to(x.dtype)
        if being_traced():
            return _reassemble_by_tap(x, kernels)
        return _Reassemble.apply(x, kernels.permute(0, 3, 4, 2, 1))


def _reassemble_by_tap(x: Tensor, kernels: Tensor) -> Tensor:
    """Add up one product for each tap: a compiler fuses them, and an exported graph holds nothing else."""
    h, w = x.shape[2:]
    size = _window_size(kernels.size(1))
    pad = size // 2
    padded = F.pad(x, (pad, pad, pad, pad))
    out = torch.zeros_like(x, dtype=_sum_dtype(x)).unsqueeze(2)
    for tap, weight in enumerate(kernels.unbind(1)):
        dy, dx = divmod(tap, size)
        out = out + padded[:, :, None, dy : dy + h, dx : dx + w] * weight[:, None]
    return pixel_shuffle(out.flatten(1, 2)).to(x.dtype)


def _sum_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which many addends are summed: half precision has too few digits for it."""
    return torch.promote_types(x.dtype, torch.float32)


def _window_size(taps: int) -> int:
    return round(int(taps) ** 0.5)  # int: TorchScript's tracer has sizes be tensors


class _Reassemble(torch.autograd.Function):
    """One small matrix product for each input pixel: (4 phases, taps) x (taps, C).

    The windows of all pixels together are ``k * k`` times the input, and autograd would keep them: 6.25
    times the output for k = 5. They are gathered for some rows at a time, and again in the backward
    pass (docs/performance.md compares other ways).
    """

    @staticmethod
    def forward(x: Tensor, kernels: Tensor) -> Tensor:
        width = x.size(3)
        padded = _pad_channels_last(x, kernels)
        out = empty_upsampled(x)
        phases = _phase_view(out)
        for images, rows in _chunks(x, kernels):
            windows = _windows(padded, images, rows, width)
            made = torch.bmm(kernels[images, rows].reshape(-1, *kernels.shape[3:]), windows)
            phases[images, rows] = made.view(phases[images, rows].shape)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, kernels = ctx.saved_tensors
        c, h, w = x.shape[1:]
        size = _window_size(kernels.size(4))
        pad = size // 2
        with no_autocast(x.device):
            padded = _pad_channels_last(x, kernels)
            grad_padded = torch.zeros_like(padded, dtype=_sum_dtype(x))
            grad_kernels = torch.empty_like(kernels)
            phases = _phase_view(grad)
            for images, rows in _chunks(x, kernels):
                grad_made = phases[images, rows].reshape(-1, 4, c)
                weights = kernels[images, rows]
                windows = _windows(padded, images, rows, w)
                grad_weights = torch.bmm(grad_made, windows.transpose(1, 2))
                grad_kernels[images, rows] = grad_weights.view(weights.shape)
                grad_windows = torch.bmm(weights.reshape(-1, *weights.shape[3:]).transpose(1, 2), grad_made)
                grad_windows = grad_windows.view(*weights.shape[:3], size, size, c)
                for dy in range(size):
                    shifted = slice(rows.start + dy, rows.stop + dy)
                    for dx in range(size):
                        grad_padded[images, shifted, dx : dx + w] += grad_windows[:, :, :, dy, dx]
        grad_x = grad_padded[:, pad : pad + h, pad : pad + w].permute(0, 3, 1, 2)
        return grad_x.to(x.dtype), grad_kernels


def _pad_channels_last(x: Tensor, kernels: Tensor) -> Tensor:
    """Return ``(N, H + k - 1, W + k - 1, C)``."""
    pad = _window_size(kernels.size(4)) // 2
    return F.pad(x.permute(0, 2, 3, 1), (0, 0, pad, pad, pad, pad)).contiguous()


def _windows(padded: Tensor, images: slice, rows: slice, width: int) -> Tensor:
    """Gather the windows of some rows of pixels: ``(pixels, k * k, C)``."""
    size = padded.size(2) - width + 1
    band = padded[images, rows.start : rows.stop + size - 1]
    windows = band.unfold(1, size, 1).unfold(2, size, 1)
    return windows.permute(0, 1, 2, 4, 5, 3).reshape(-1, size * size, padded.size(3))


def _phase_view(out: Tensor) -> Tensor:
    """View ``(N, C, 2H, 2W)`` as ``(N, H, W, 2, 2, C)``, phases after their pixel."""
    h, w = out.shape[2:]
    return out.unflatten(2, (h // 2, 2)).unflatten(4, (w // 2, 2)).permute(0, 2, 4, 3, 5, 1)


def _chunks(x: Tensor, kernels: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield slices of images and of rows whose windows fit the memory set for them."""
    n, c, h, w = x.shape
    row_bytes = kernels.size(4) * c * w * x.element_size()
    limit = _CHUNK_BYTES.get(x.device.type, _CHUNK_BYTES_ELSEWHERE)
    rows = min(max(limit // row_bytes, 1), h)
    images = min(max(limit // (row_bytes * h), 1), max(n, 1))
    for image in range(0, n, images):
        for row in range(0, h, rows):
            yield slice(image, min(image + images, n)), slice(row, min(row + rows, h))
