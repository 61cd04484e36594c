"""The optimizer wrapper of bfloat16."""

from __future__ import annotations

import torch
from mmengine.optim import OptimWrapper, build_optim_wrapper

import pixeldcl_plugin  # noqa: F401  (registers the wrapper)


def test_bfloat16_wrapper_accumulates_and_clips_as_the_plain_one() -> None:
    """Each step the same as the plain wrapper's on gradients that bfloat16 computed."""
    torch.manual_seed(0)
    inputs = torch.randn(4, 2, 8)
    results = []
    for kind in ("OptimWrapper", "BFloat16OptimWrapper"):
        torch.manual_seed(1)
        model = torch.nn.Linear(8, 3)
        wrapper = build_optim_wrapper(
            model,
            dict(
                type=kind,
                optimizer=dict(type="SGD", lr=0.5),
                accumulative_counts=2,
                clip_grad=dict(max_norm=0.1),
            ),
        )
        assert isinstance(wrapper, OptimWrapper)
        wrapper.initialize_count_status(model, 0, 4)
        for batch in inputs:
            with wrapper.optim_context(model):
                output = model(batch)
            wrapper.update_params(output.float().square().mean())
        results.append((output.dtype, model.weight.detach()))
        assert model.weight.dtype == torch.float32
    (plain_dtype, plain), (amp_dtype, amp) = results
    assert (plain_dtype, amp_dtype) == (torch.float32, torch.bfloat16)
    assert not torch.equal(plain, amp)
    torch.testing.assert_close(plain, amp, atol=2e-3, rtol=0)
