"""The frozen encoder: nothing in it changes, whatever is done to the model around it."""

from __future__ import annotations

import pytest
import torch
from mmseg.registry import MODELS

pytest.importorskip("timm", reason="timm is an extra")

ENCODER = dict(model_name="tf_efficientnet_lite0", features_only=True, pretrained=False)


def test_frozen_encoder_neither_learns_nor_updates_statistics() -> None:
    torch.manual_seed(0)
    encoder = MODELS.build(dict(type="FrozenTIMMBackbone", **ENCODER)).train()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    outputs = encoder(torch.rand(2, 3, 64, 64))
    assert [tuple(out.shape[2:]) for out in outputs] == [(32, 32), (16, 16), (8, 8), (4, 4), (2, 2)]
    assert not any(out.requires_grad for out in outputs)
    assert not any(p.requires_grad for p in encoder.parameters())
    after = encoder.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_frozen_encoder_computes_as_the_trained_one_in_evaluation() -> None:
    torch.manual_seed(0)
    frozen = MODELS.build(dict(type="FrozenTIMMBackbone", **ENCODER)).train()
    plain = MODELS.build(dict(type="TIMMBackbone", **ENCODER)).eval()
    plain.load_state_dict(frozen.state_dict())
    image = torch.rand(1, 3, 96, 64)
    for got, wanted in zip(frozen(image), plain(image), strict=True):
        torch.testing.assert_close(got, wanted)
