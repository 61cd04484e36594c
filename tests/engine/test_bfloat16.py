"""Mixed precision on a CPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pixeldcl_plugin.engine.optim import BFloat16OptimWrapper

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a matter of CPUs")


def test_depthwise_convolutions_compute_in_float32() -> None:
    torch.manual_seed(0)
    depthwise, dense = nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3, groups=2)
    x = torch.randn(2, 8, 9, 9)
    wrapper = BFloat16OptimWrapper(torch.optim.SGD(depthwise.parameters(), lr=0.1))
    with wrapper.optim_context(depthwise):
        outputs = depthwise(x), F.conv2d(x, depthwise.weight, depthwise.bias, groups=8)
        coarse = dense(x)
    for out in outputs:
        assert torch.equal(out, depthwise(x).bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(coarse, dense(x))
        assert not torch.equal(outputs[0], depthwise(x))
    outputs[0].float().sum().backward()
    got = depthwise.weight.grad
    depthwise.weight.grad = None
    depthwise(x).sum().backward()
    torch.testing.assert_close(got, depthwise.weight.grad)
