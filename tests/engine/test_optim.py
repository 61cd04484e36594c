"""The optimizer wrapper of bfloat16, and what building an optimizer prints."""

from __future__ import annotations

import logging

import torch
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper, build_optim_wrapper

from pixeldcl_plugin.engine.console import quiet_logger  # the package registers the wrapper


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


def test_frozen_parameters_with_rates_of_their_own_are_not_listed() -> None:
    """MMEngine has two lines for every parameter of an encoder, which hide what a user can act on."""
    model = torch.nn.Sequential(torch.nn.Linear(8, 3), torch.nn.Linear(3, 2))
    model[0].requires_grad_(False)
    cfg = dict(
        type="OptimWrapper",
        optimizer=dict(type="SGD", lr=0.5),
        paramwise_cfg=dict(custom_keys={"1": dict(lr_mult=0.1)}),
    )
    logger = MMLogger.get_current_instance()
    shown: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: shown.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        with quiet_logger(), quiet_logger():
            wrapper = build_optim_wrapper(model, cfg)
            logger.warning("something else")
        assert wrapper.param_groups[0]["lr"] == 0.05
        assert shown == ["something else"]
        build_optim_wrapper(model, cfg)
        assert any("requires_grad" in text for text in shown), "outside the block the logger is as it was"
    finally:
        logger.removeHandler(handler)
