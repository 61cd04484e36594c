"""UNetDecoder in plain torch: the example of the docs, sizes, errors. UNetHead has further tests."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pixeldcl_plugin import UNetDecoder
from pixeldcl_plugin.layers.unet_decoder import upsample_block

ROOT = Path(__file__).parents[2]
CHANNELS = (3, 4, 5)


def features(*sizes: tuple[int, int]) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.rand(2, c, *size, requires_grad=True) for c, size in zip(CHANNELS, sizes, strict=True)]


def test_the_example_of_the_docs_runs() -> None:
    (code,) = re.findall(r"```python\n(import timm.*?)```", (ROOT / "docs/layers.md").read_text(), re.DOTALL)
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    assert namespace["logits"].shape == (2, 21, 96, 128)
    assert namespace["logits"].requires_grad


@pytest.mark.parametrize("sizes", [[(16, 24), (8, 12), (4, 6)], [(15, 21), (8, 11), (4, 6)]])
@pytest.mark.parametrize("with_cp", [False, True])
def test_every_feature_and_parameter_gets_a_gradient(sizes: list[tuple[int, int]], with_cp: bool) -> None:
    decoder = UNetDecoder(CHANNELS, (6, 5, 4), with_cp=with_cp)  # one stage more than there are skips
    inputs = features(*sizes)
    out = decoder(inputs)
    assert out.shape == (2, 4, 2 * sizes[0][0], 2 * sizes[0][1])
    out.square().sum().backward()
    assert all(tensor.grad is not None for tensor in [*inputs, *decoder.parameters()])


def test_parts_are_chosen_by_who_builds_it() -> None:
    made = []

    def upsample(below: int, channels: int) -> nn.Module:
        made.append((below, channels))
        return upsample_block(below, channels)

    decoder = UNetDecoder(
        CHANNELS, (6, 5), upsample=upsample, convs=lambda i, o: nn.Conv2d(i, o, 1), skip_norm=nn.BatchNorm2d
    )
    assert made == [(5, 6), (6, 5)]
    assert [stage.convs.in_channels for stage in decoder.stages] == [6 + 4, 5 + 3]
    assert [stage.skip_norm.num_features for stage in decoder.stages] == [4, 3]


def test_names_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"an entry for each of the 2 skips, got \(6,\)"):
        UNetDecoder(CHANNELS, (6,))
    with pytest.raises(ValueError, match=r"in_channels must be a non-empty list of integers, got \(\)"):
        UNetDecoder((), (6,))
    with pytest.raises(ValueError, match=r"map of size \(8, 12\) does not fit a skip of size \(8, 14\)"):
        UNetDecoder(CHANNELS, (6, 5))(features((16, 28), (8, 14), (4, 6)))
