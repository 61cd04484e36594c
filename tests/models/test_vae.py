"""The VAE of Fig. 9: its densities against literal ones, its modes, and any upsampler in it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from pixeldcl_plugin.engine.optim import BFloat16OptimWrapper
from pixeldcl_plugin.evaluation import VAEMetric
from pixeldcl_plugin.evaluation.checkerboard import nyquist_energy
from pixeldcl_plugin.models import vae_densities
from pixeldcl_plugin.models.vae import VAE

UPSAMPLERS = [
    dict(type="DeconvModule", kernel_size=4),
    dict(type="InterpConv"),
    dict(type="PixelDCL"),
    dict(type="PixelDCL", checkerboard_free=True),
    dict(type="IPixelDCL"),
    dict(type="PixelShuffleICNR"),
    dict(type="TorchCARAFE"),
    dict(type="DySample"),
]
TINY = dict(image_size=16, encoder_channels=(8, 8), decoder_channels=(8, 8, 4), latent_channels=3)


def tiny(**settings: Any) -> VAE:
    torch.manual_seed(0)
    return VAE(**{**TINY, **settings})


def images(n: int = 4, seed: int = 0, size: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, size, size), generator=generator) / 255


def elements(n: int) -> list[BaseDataElement]:
    return [BaseDataElement(metainfo=dict(sample_idx=index)) for index in range(n)]


# --- densities -----------------------------------------------------------------------------------


def test_kl_is_that_of_torch_distributions() -> None:
    mean, log_var = torch.randn(5, 7, dtype=torch.float64), 2 * torch.randn(5, 7, dtype=torch.float64)
    posterior = Independent(Normal(mean, (0.5 * log_var).exp()), 1)
    prior = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 1)
    expected = kl_divergence(posterior, prior)
    torch.testing.assert_close(vae_densities.kl_to_standard_normal(mean, log_var), expected)


def test_likelihood_is_that_of_torch_distributions() -> None:
    x, mean = torch.rand(2, 5, 3, 4, 4, dtype=torch.float64)
    log_std = torch.tensor(-1.3, dtype=torch.float64)
    expected = Normal(mean, log_std.exp()).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(vae_densities.gaussian_log_density(x, mean, log_std), expected)


def test_log_variance_is_bounded_and_close_to_the_identity() -> None:
    x = torch.tensor([-math.inf, -1e4, -1.0, 0.0, 0.5, 50.0, math.inf], dtype=torch.bfloat16)
    bounded = vae_densities.soft_bound(x)
    assert bounded.dtype == torch.float32
    assert bounded.abs().max() <= 10
    torch.testing.assert_close(bounded[2:5], x[2:5].float(), rtol=0.01, atol=0)


def test_dequantised_values_stay_in_the_interval_of_their_level() -> None:
    levels = torch.arange(256) / 255
    for u in (0.0, 0.5, 0.999):
        y = vae_densities.dequantise(levels, torch.full((256,), u))
        assert torch.equal((y * 256).floor().long(), torch.arange(256))
    middle = vae_densities.dequantise(levels, torch.full((256,), 0.5))
    torch.testing.assert_close(vae_densities.to_image(middle), levels)


def test_dequantised_density_bounds_the_probability_of_a_level() -> None:
    """A level's exact probability is the density's integral over its interval; log 256 is the volume."""
    mean, std, level = 0.4, 0.01, 103
    normal = Normal(torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64))
    edges = torch.tensor([level, level + 1], dtype=torch.float64) / 256
    exact = -normal.cdf(edges).diff().log().item()
    u = (torch.arange(10_000, dtype=torch.float64).view(-1, 1) + 0.5) / 10_000
    y = vae_densities.dequantise(torch.tensor(level / 255, dtype=torch.float64), u)
    log_std = torch.tensor(math.log(std), dtype=torch.float64)
    density = vae_densities.gaussian_log_density(y, torch.tensor(mean), log_std).mean().item()
    bound = -density + math.log(256)
    assert exact <= bound <= exact + 0.02


# --- the ELBO ------------------------------------------------------------------------------------


def literal_terms(model: VAE, image: Tensor, index: int, count: int) -> tuple[float, float, Tensor]:
    """Negative ELBO, KL and log-weights of one picture, written with torch.distributions."""
    rng = np.random.default_rng((model.seed, index))
    y = (image * 255 + torch.from_numpy(rng.random(tuple(image.shape), dtype=np.float32))) / 256
    noise = torch.from_numpy(rng.standard_normal((1 + count, model.latent_channels), dtype=np.float32))[1:]
    mean, log_var = (value[0] for value in model.encode(image[None]))
    posterior, prior = Normal(mean, (log_var / 2).exp()), Normal(0 * mean, 1 + 0 * mean)
    weights = []
    for z in mean + (log_var / 2).exp() * noise:
        likelihood = Normal(model.decode(z[None])[0], 0.1).log_prob(y).sum() - y.numel() * math.log(256)
        weights.append((likelihood, likelihood + prior.log_prob(z).sum() - posterior.log_prob(z).sum()))
    kl = kl_divergence(posterior, prior).sum()
    return float(kl - weights[0][0]), float(kl), torch.stack([weight for _, weight in weights])


@torch.no_grad()
def test_predict_gives_the_literal_elbo_and_importance_bound() -> None:
    model = tiny(std=0.1, importance_samples=5, seed=3).eval()
    pictures = images()
    for index, found in enumerate(model.predict(pictures, elements(4))):
        elbo, kl, weights = literal_terms(model, pictures[index], index, 5)
        assert found.negative_elbo.item() == pytest.approx(elbo, rel=1e-5)
        assert found.kl.item() == pytest.approx(kl, rel=1e-4)
        bound = -(weights.logsumexp(0) - math.log(5)).item()
        assert found.importance_bound.item() == pytest.approx(bound, rel=1e-5)


@torch.no_grad()
def test_one_importance_sample_is_an_elbo_and_more_are_tighter() -> None:
    """E[bound] falls with the number of samples (Burda et al. 2016, Theorem 1); here by nats."""
    model = tiny(std=0.3).eval()
    torch.nn.init.normal_(model.posterior_head.weight, std=0.2)  # a posterior away from the prior
    pictures = images(1).expand(64, -1, -1, -1)  # 64 keys, so 64 draws of the noise
    means = {}
    for count in (1, 5, 50):
        model.importance_samples = count
        outputs = model.predict(pictures, elements(64))
        means[count] = torch.stack([output.importance_bound for output in outputs]).mean().item()
    elbo = torch.stack([output.negative_elbo for output in outputs]).mean().item()
    spread = torch.stack([output.negative_elbo for output in outputs]).std().item() / 8
    assert means[1] == pytest.approx(elbo, abs=4 * spread + 1)
    assert means[50] < means[5] < means[1]


@torch.no_grad()
def test_importance_bound_tends_to_the_exact_likelihood() -> None:
    """Where the decoder ignores the latent, log p(y) is known, and the exact posterior is the prior."""
    model = tiny(std=0.1, importance_samples=200).eval()
    model.stem[0].weight.zero_()
    model.posterior_head.weight.zero_()
    model.posterior_head.bias[: model.latent_channels] = 0.3  # not the prior: the ELBO is loose by the KL
    model.posterior_head.bias[model.latent_channels :] = 0.2
    pictures = images(1)
    found = model.predict(pictures, elements(1))[0]
    exact = found.negative_elbo - found.kl
    assert found.kl > 0.1
    assert found.importance_bound.item() == pytest.approx(exact.item(), abs=0.3 * found.kl.item())


@torch.no_grad()
def test_scores_do_not_depend_on_batches_or_the_global_generator() -> None:
    model = tiny(importance_samples=2).eval()
    pictures = images()
    together = model.predict(pictures, elements(4))
    torch.manual_seed(99)
    for index, element in enumerate(elements(4)):
        alone = model.predict(pictures[index : index + 1], [element])[0]
        for name in ("negative_elbo", "kl", "importance_bound", "reconstruction", "prior_sample"):
            torch.testing.assert_close(alone.get(name), together[index].get(name))
    others = tiny(importance_samples=2, seed=1).eval().predict(pictures, elements(4))
    assert others[0].negative_elbo != together[0].negative_elbo


def test_loss_is_the_negative_elbo_in_bits_a_dimension() -> None:
    model = tiny(beta=0.5).eval()
    pictures = images(64)
    torch.manual_seed(1)
    losses = model(pictures, mode="loss")
    outputs = model.predict(pictures, elements(64))
    bits = pictures[0].numel() * math.log(2)
    kl = torch.stack([output.kl for output in outputs]).mean() / bits
    elbo = torch.stack([output.negative_elbo for output in outputs]).mean() / bits
    assert losses["loss_kl"].item() == pytest.approx(0.5 * kl.item(), rel=1e-5)
    assert losses["loss_reconstruction"].item() == pytest.approx((elbo - kl).item(), rel=1e-3)


# --- modes, upsamplers, robustness ---------------------------------------------------------------


@pytest.mark.parametrize("upsample_cfg", UPSAMPLERS, ids=lambda cfg: "-".join(map(str, cfg.values())))
def test_every_upsampler_trains_and_round_trips(upsample_cfg: dict[str, Any]) -> None:
    model = MODELS.build(dict(type="VAE", upsample_cfg=upsample_cfg, **TINY))
    model.init_weights()
    loss, _ = model.parse_losses(model(images(), mode="loss"))
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    other = MODELS.build(dict(type="VAE", upsample_cfg=upsample_cfg, **TINY))
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other.eval()(images()), model.eval()(images()))
    assert model.sample(2).shape == (2, 3, 16, 16)


def test_train_step_learns_one_picture() -> None:
    model = tiny()
    wrapper = BFloat16OptimWrapper(torch.optim.Adam(model.parameters(), lr=1e-2))
    batch = dict(inputs=[torch.full((3, 16, 16), 200, dtype=torch.uint8)] * 4, data_samples=elements(4))
    values = [model.train_step(batch, wrapper)["loss"].item() for _ in range(60)]
    assert np.isfinite(values).all()
    assert values[-1] < values[0] - 1
    prediction = model.val_step(batch)[0]
    assert prediction.reconstruction.mean().item() == pytest.approx(200 / 255, abs=0.1)


@pytest.mark.parametrize("extreme", [-1e30, -1e4, 1e4, 1e30])
def test_extreme_log_variances_stay_finite_under_autocast(extreme: float) -> None:
    model = tiny()
    with torch.no_grad():
        model.posterior_head.bias[model.latent_channels :] = extreme
        model.log_std.fill_(extreme)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(images(), mode="loss")
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_fixed_std_is_no_parameter_and_is_used_as_it_is() -> None:
    model = tiny(std=0.05).eval()
    assert "log_std" not in dict(model.named_parameters())
    z, y = torch.randn(2, 3), images(2)
    with torch.no_grad():
        expected = Normal(model.decode(z), 0.05).log_prob(y).sum((1, 2, 3)) - y[0].numel() * math.log(256)
        torch.testing.assert_close(model.log_likelihood(y, z), expected)


def test_samples_are_those_of_the_generator() -> None:
    model = tiny().eval()
    first, again, other = (model.sample(3, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    latents = torch.randn(3, 3, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        torch.testing.assert_close(first, vae_densities.to_image(model.decode(latents)))
    assert not first.requires_grad


def test_ends_of_an_interpolation_are_reconstructions_and_its_middle_is_half_way() -> None:
    model = tiny().eval()
    a, b = images(2, seed=1), images(2, seed=2)
    line = model.interpolate(a, b, 5)
    assert line.shape == (2, 5, 3, 16, 16)
    torch.testing.assert_close(line[:, 0], model.reconstruct(a))
    torch.testing.assert_close(line[:, -1], model.reconstruct(b))
    with torch.no_grad():
        middle = (model.encode(a)[0] + model.encode(b)[0]) / 2
        torch.testing.assert_close(line[:, 2], vae_densities.to_image(model.decode(middle)))
    torch.testing.assert_close(model(a), model.reconstruct(a))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(image_size=18), "image_size must be a multiple of 4"),
        (dict(image_size=0), "image_size must be a positive integer"),
        (dict(latent_channels=0), "latent_channels"),
        (dict(decoder_channels=(8, 8)), "decoder_channels must be one more"),
        (dict(encoder_channels=()), "encoder_channels must be positive"),
        (dict(encoder_channels=(8, -1)), "encoder_channels must be positive"),
        (dict(std=0), "std must be"),
        (dict(std="pixel"), "std must be a positive number or 'learned', got 'pixel'"),
        (dict(std=math.nan), "std must be"),
        (dict(beta=-1), "beta"),
        (dict(importance_samples=-1), "importance_samples"),
        (dict(seed=0.5), "seed"),
        (dict(upsample_cfg=dict(type="Nothing")), "upsample_cfg"),
    ],
)
def test_wrong_arguments_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**settings)


def test_wrong_inputs_are_named() -> None:
    model = tiny().eval()
    with pytest.raises(ValueError, match=r"images must have the shape .*16, 16.*got \(1, 3, 8, 8\)"):
        model(images(1, size=8))
    with pytest.raises(ValueError, match="latents must have the shape"):
        model.decode(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="mode must be"):
        model(images(), mode="test")
    with pytest.raises(ValueError, match="steps must be an integer of at least 2, got 1"):
        model.interpolate(images(), images(), 1)
    with pytest.raises(ValueError, match="same shape"):
        model.interpolate(images(1), images(2), 3)
    with pytest.raises(ValueError, match="n must be"):
        model.sample(0)
    fourfold = tiny(upsample_cfg=dict(type="InterpConv", upsample_cfg=dict(scale_factor=4, mode="nearest")))
    with pytest.raises(ValueError, match="upsample_cfg must double the size: 2 stages made"):
        fourfold.eval().sample(1)


# --- the metric ----------------------------------------------------------------------------------


@torch.no_grad()
def test_metric_averages_the_scores_of_the_pictures() -> None:
    model = tiny(importance_samples=3).eval()
    raw = (images(5) * 255).round().byte()
    outputs = model.test_step(dict(inputs=list(raw), data_samples=elements(5)))
    metric = VAEMetric()
    for places in ([0, 1], [2, 3], [4]):  # the last batch is a single picture
        metric.process(dict(inputs=[raw[k] for k in places]), [outputs[k].to_dict() for k in places])
    scores = metric.compute_metrics(metric.results)

    real = raw / 255
    made, samples = (torch.stack([o.get(k) for o in outputs]) for k in ("reconstruction", "prior_sample"))
    nelbo = torch.stack([output.negative_elbo for output in outputs]).mean().item()
    bound = torch.stack([output.importance_bound for output in outputs]).mean().item()
    psnr = np.mean([PeakSignalNoiseRatio(data_range=1.0)(m, r) for m, r in zip(made, real, strict=True)])
    expected = dict(
        nelbo=nelbo,
        bpd=nelbo / (3 * 16 * 16 * math.log(2)),
        iw_nelbo=bound,
        iw_bpd=bound / (3 * 16 * 16 * math.log(2)),
        kl=torch.stack([output.kl for output in outputs]).mean().item(),
        psnr=psnr,
        ssim=StructuralSimilarityIndexMeasure(data_range=1.0)(made, real).item(),
        nyquist_samples=nyquist_energy(samples).mean().item(),
        nyquist_reconstructions=nyquist_energy(made).mean().item(),
        nyquist_images=nyquist_energy(real).mean().item(),
    )
    assert scores == pytest.approx(expected, rel=1e-4)


def test_metric_tells_a_checkerboard_from_none() -> None:
    smooth = torch.linspace(0.2, 0.8, 64).expand(1, 3, 64, 64) + 0.02 * torch.rand(1, 3, 64, 64)
    checks = smooth + 0.05 * (torch.arange(64)[:, None] + torch.arange(64)).remainder(2)
    sample = dict(negative_elbo=torch.tensor(1.0), kl=torch.tensor(0.5), reconstruction=smooth[0])
    metric = VAEMetric()
    metric.process(dict(inputs=(smooth * 255).byte()), [dict(**sample, prior_sample=checks[0])])
    scores = metric.compute_metrics(metric.results)
    assert scores["nyquist_samples"] > 20 * scores["nyquist_reconstructions"]
