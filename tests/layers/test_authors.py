"""The layers compute what the authors' TensorFlow code does: ``authors_tf.npz``, explained beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pixeldcl_plugin import IPixelDCL, PixelDCL

REFERENCE = np.load(Path(__file__).with_name("authors_tf.npz"))
CASES = sorted({key.rpartition("/")[0] for key in REFERENCE})


def named(case: str, prefix: str = "") -> dict[str, Tensor]:
    """A case's arrays whose names begin so, without it: channels first, kernels ``(out, in, kh, kw)``."""
    arrays = {}
    for key in REFERENCE:
        folder, _, name = key.rpartition("/")
        if folder == case and name.startswith(prefix):
            array = torch.from_numpy(REFERENCE[key])
            order = (3, 2, 0, 1) if "conv" in name else (0, 3, 1, 2)
            arrays[name.removeprefix(prefix)] = array.permute(order)
    return arrays


def pixel_dcl_parameters(kernels: dict[str, Tensor]) -> dict[str, Tensor]:
    """Theirs under our names: of the masked kernel the rows with dy even and with dy odd."""
    masked = kernels["conv2"]
    radius = masked.size(-1) // 2
    even = [tap for tap in range(2 * radius + 1) if (tap - radius) % 2 == 0]
    odd = [tap for tap in range(2 * radius + 1) if (tap - radius) % 2]
    return {
        "weight_p00": kernels["conv0"],
        "weight_p11": kernels["conv1"],
        "weight_h": masked[:, :, even][..., odd],
        "weight_v": masked[:, :, odd][..., even],
    }


def ipixel_dcl_parameters(kernels: dict[str, Tensor]) -> dict[str, Tensor]:
    """Theirs under our names: kernels of concatenated maps, cut by what they read and what they make."""
    p00, p11, last = (kernels[f"conv{index}"] for index in (1, 2, 3))
    c, cin = p00.shape[:2]
    p10, p01 = last.chunk(2)
    return {
        "weight_p00": p00,
        "weight_from_x": torch.cat([kernel[:, :cin] for kernel in (p11, p01, p10)]),
        "weight_from_p00": torch.cat([kernel[:, cin : cin + c] for kernel in (p11, p01, p10)]),
        "weight_from_p11": torch.cat([kernel[:, cin + c :] for kernel in (p01, p10)]),
    }


KINDS = {"pixel_dcl": (PixelDCL, pixel_dcl_parameters), "ipixel_dcl": (IPixelDCL, ipixel_dcl_parameters)}


def test_the_file_holds_both_layers_with_several_kernel_sizes() -> None:
    sizes = {(kind, case[1]) for kind, _, case in (case.partition("/") for case in CASES)}
    assert sizes >= {*(("pixel_dcl", k) for k in "357"), *(("ipixel_dcl", k) for k in "35")}


@pytest.mark.parametrize("case", [case for case in CASES if case.partition("/")[0] in KINDS])
def test_equal_to_the_authors_layers(case: str) -> None:
    cls, parameters = KINDS[case.partition("/")[0]]
    kernels = {name: array for name, array in named(case).items() if name.startswith("conv")}
    weight, arrays = parameters(kernels), named(case)
    c, cin, k, _ = weight["weight_p00"].shape
    layer: nn.Module = cls(cin, c, kernel_size=k).double()
    layer.load_state_dict(weight)
    x = arrays["x"].requires_grad_()
    y = layer(x)
    y.backward(arrays["grad_y"])

    exact = dict(rtol=0, atol=1e-12)
    torch.testing.assert_close(y, arrays["y"], **exact)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, arrays["grad_x"], **exact)
    for name, gradient in parameters(named(case, "grad_")).items():
        torch.testing.assert_close(layer.get_parameter(name).grad, gradient, **exact)
