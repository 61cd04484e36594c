"""What stands in the way of torch.export is replaced by what computes the same, at any size."""

from __future__ import annotations

import pytest
import timm.layers
import torch
from mmseg.models.utils import Upsample
from torch import nn
from torch.export import Dim

from pixeldcl_plugin.apis.traceable import traceable


class Tiny(nn.Module):
    """Two stages down, one up and a skip: as an encoder of timm under a decoder with InterpConv."""

    with_auxiliary_head = False

    def __init__(self, kernel_size: int, dilation: int) -> None:
        super().__init__()
        self.down = timm.layers.Conv2dSame(3, 4, kernel_size, stride=2, dilation=dilation)
        self.deeper = timm.layers.Conv2dSame(4, 4, kernel_size, stride=2)
        self.act = nn.ReLU6(inplace=True)
        self.up = Upsample(scale_factor=2, mode="bilinear", align_corners=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        skip = self.act(self.down(image) + 3)
        return torch.cat([skip, self.up(self.deeper(skip))], dim=1)


@pytest.mark.parametrize("kernel_size", [2, 3, 5])
@pytest.mark.parametrize("dilation", [1, 2])
def test_computes_the_same_and_traces_with_any_size(kernel_size: int, dilation: int) -> None:
    torch.manual_seed(0)
    model = Tiny(kernel_size, dilation).eval()
    copy = traceable(model)
    dims = {2: 4 * Dim("height", min=2), 3: 4 * Dim("width", min=2)}
    with torch.no_grad():
        exported = torch.export.export(copy, (torch.zeros(2, 3, 32, 32),), dynamic_shapes=(dims,))
    program = exported.module()
    assert not any("hardtanh" in str(node.target) for node in exported.graph.nodes)
    assert type(model.act) is nn.ReLU6
    for size in ((32, 32), (40, 64), (8, 12)):
        image = torch.rand(2, 3, *size)
        expected = model(image)
        torch.testing.assert_close(copy(image), expected)
        torch.testing.assert_close(program(image), expected)
    assert type(model.down) is timm.layers.Conv2dSame  # the model itself is left as it is


def test_another_factor_is_left_to_mmseg() -> None:
    model = Tiny(3, 1)
    model.up = Upsample(scale_factor=1.5, mode="nearest")
    x = torch.rand(1, 4, 6, 8)
    torch.testing.assert_close(traceable(model).up(x), model.up(x))
