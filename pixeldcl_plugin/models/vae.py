"""A convolutional VAE for small pictures, its decoder built on any upsampler: the study of Fig. 9.

The paper does not publish its architecture. Here strided convolutions halve the picture down to 4x4 and as
many upsamplers double it again; nothing but a 1x1 convolution follows the last of them, so that what an
upsampler does to neighbouring pixels is there to see.

The prior is N(0, I), the posterior a diagonal Gaussian (Kingma & Welling 2014, arXiv 1312.6114), the
likelihood ``N(y; decoder(z), std^2)`` of dequantised pictures y, see
:mod:`pixeldcl_plugin.models.vae_densities`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from mmcv.cnn import ConvModule, build_activation_layer, build_norm_layer
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..layers.arguments import check_positive, is_int
from ..registry import register
from .upsamplers import build_upsampler
from .vae_arguments import check_noise, check_widths
from .vae_densities import (
    LEVELS,
    dequantise,
    gaussian_log_density,
    kl_to_standard_normal,
    soft_bound,
    to_image,
)

__all__ = ["VAE"]


@register(MODELS)
class VAE(BaseModel):
    """A variational autoencoder whose decoder upsamples with the layers that ``upsample_cfg`` names.

    Pictures are float tensors with values k / 255 in [0, 1]; the data preprocessor makes them from uint8.
    Put the model into ``eval()`` before :meth:`sample`, :meth:`reconstruct` and :meth:`interpolate`, which
    show the mean of the likelihood and compute no gradient.

    Args:
        upsample_cfg: Config of the upsampler of every stage, which must double the size, see
            :func:`~pixeldcl_plugin.models.upsamplers.build_upsampler`.
        image_size: Height and width of the pictures.
        encoder_channels: Output channels of the strided convolutions; each halves the size.
        decoder_channels: Channels of the smallest map, then the output channels of each upsampler; one more
            than ``encoder_channels``.
        latent_channels: Dimensions of the latent.
        std: Standard deviation of the likelihood, of y in [0, 1): a positive number, or ``'learned'`` for one
            parameter shared by all values.
        beta: Weight of the KL term in the training loss, not in what is evaluated.
        importance_samples: In ``predict``, the number of latents in the importance-weighted bound (Burda et
            al. 2016, arXiv 1509.00519); 0 leaves it out.
        seed: Of the noise in ``predict``, which depends on it and the picture's index only.
        norm_cfg: mmcv norm config; None for none.
        act_cfg: mmcv activation config; None for none.
        data_preprocessor: Config; by default one that divides by 255.
        init_cfg: As in any mmengine model.

    Raises:
        ValueError: If an argument is none of the above; the message names it.
    """

    def __init__(
        self,
        upsample_cfg: dict[str, Any] = dict(type="PixelDCL"),  # noqa: B006 mmseg's style, never changed
        image_size: int = 64,
        encoder_channels: Sequence[int] = (32, 64, 128, 256),
        decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
        latent_channels: int = 128,
        *,
        std: float | str = "learned",
        beta: float = 1.0,
        importance_samples: int = 0,
        seed: int = 0,
        norm_cfg: dict[str, Any] | None = dict(type="BN"),  # noqa: B006
        act_cfg: dict[str, Any] | None = dict(type="ReLU"),  # noqa: B006
        data_preprocessor: dict[str, Any] | nn.Module | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        if data_preprocessor is None:
            data_preprocessor = dict(type="ImgDataPreprocessor", mean=[0.0] * 3, std=[255.0] * 3)
        super().__init__(data_preprocessor, init_cfg)
        check_positive(image_size=image_size, latent_channels=latent_channels)
        check_widths(image_size, encoder_channels, decoder_channels)
        check_noise(std, beta, importance_samples, seed)
        self.image_size = image_size
        self.latent_channels = latent_channels
        self.beta = beta
        self.importance_samples = importance_samples
        self.seed = seed
        log_std = torch.tensor(math.log(0.1 if isinstance(std, str) else std))
        if std == "learned":
            self.log_std = nn.Parameter(log_std)
        else:
            self.register_buffer("log_std", log_std)

        widths = (3, *encoder_channels)
        self.encoder = nn.Sequential(
            *(
                ConvModule(i, o, 4, stride=2, padding=1, norm_cfg=norm_cfg, act_cfg=act_cfg)
                for i, o in pairwise(widths)
            )
        )
        bottom = image_size >> len(encoder_channels)
        self.posterior_head = nn.Linear(widths[-1] * bottom**2, 2 * latent_channels)
        first = decoder_channels[0]
        self.stem = nn.Sequential(
            nn.Linear(latent_channels, first * bottom**2),
            nn.Unflatten(1, (first, bottom, bottom)),
            build_norm_layer(norm_cfg, first)[1] if norm_cfg else nn.Identity(),
            build_activation_layer(act_cfg) if act_cfg else nn.Identity(),
        )
        self.upsamplers = nn.Sequential(
            *(
                build_upsampler(upsample_cfg, i, o, norm_cfg=norm_cfg, act_cfg=act_cfg)
                for i, o in pairwise(decoder_channels)
            )
        )
        self.to_rgb = nn.Conv2d(decoder_channels[-1], 3, 1)

    # --- the parts -------------------------------------------------------------------------------

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Give mean and log-variance of the posterior, ``(N, latent_channels)`` each, in float32.

        Raises:
            ValueError: If ``images`` is not ``(N, 3, image_size, image_size)``.
        """
        expected = (3, self.image_size, self.image_size)
        if images.dim() != 4 or images.shape[1:] != expected:
            raise ValueError(f"images must have the shape (N, {expected}), got {tuple(images.shape)}")
        # Channels last: a tenth faster on a CPU with these few channels at full size.
        features = self.encoder((2 * images - 1).contiguous(memory_format=torch.channels_last))
        mean, log_var = self.posterior_head(features.flatten(1)).float().chunk(2, 1)
        return mean, soft_bound(log_var)

    def decode(self, latents: Tensor) -> Tensor:
        """Give the mean of the likelihood of y for ``(N, latent_channels)``: ``(N, 3, size, size)``.

        Raises:
            ValueError: If ``latents`` has another shape, or the upsamplers do not double the size.
        """
        if latents.dim() != 2 or latents.size(1) != self.latent_channels:
            raise ValueError(
                f"latents must have the shape (N, {self.latent_channels}), got {tuple(latents.shape)}"
            )
        features = self.stem(latents).contiguous(memory_format=torch.channels_last)
        means = self.to_rgb(self.upsamplers(features)).float().sigmoid()
        if means.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"upsample_cfg must double the size: {len(self.upsamplers)} stages made "
                f"{tuple(means.shape[-2:])} of {tuple(features.shape[-2:])}, not {self.image_size}"
            )
        return means

    def log_likelihood(self, noisy: Tensor, latents: Tensor) -> Tensor:
        """Give log p(y | z) in nats of the 8-bit picture, for y and z of the same N: ``(N,)``."""
        # A fixed one is taken as it is.
        log_std = soft_bound(self.log_std) if isinstance(self.log_std, nn.Parameter) else self.log_std
        log_density = gaussian_log_density(noisy, self.decode(latents), log_std)
        return log_density - noisy[0].numel() * math.log(LEVELS)

    # --- what mmengine calls ---------------------------------------------------------------------

    def forward(
        self,
        inputs: Tensor,
        data_samples: list[BaseDataElement] | None = None,
        mode: str = "tensor",
    ) -> Any:
        """Run one of the modes of an mmengine model on pictures ``(N, 3, size, size)`` in [0, 1].

        Returns:
            ``'tensor'``: the reconstructions; ``'loss'``: see :meth:`loss`; ``'predict'``: see
            :meth:`predict`.

        Raises:
            ValueError: If the mode is another one, or the shape of the pictures is.
        """
        if mode == "tensor":
            return to_image(self.decode(self.encode(inputs)[0]))
        if mode == "loss":
            return self.loss(inputs, data_samples)
        if mode == "predict":
            return self.predict(inputs, data_samples)
        raise ValueError(f"mode must be 'tensor', 'loss' or 'predict', got {mode!r}")

    def loss(self, inputs: Tensor, data_samples: list[BaseDataElement] | None = None) -> dict[str, Tensor]:
        """Give the two terms of the negative ELBO in bits a dimension, the KL term times ``beta``."""
        mean, log_var = self.encode(inputs)
        latents = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
        log_likelihood = self.log_likelihood(dequantise(inputs, torch.rand_like(inputs)), latents)
        kl = kl_to_standard_normal(mean, log_var)
        bits = inputs[0].numel() * math.log(2)
        return dict(loss_reconstruction=-log_likelihood.mean() / bits, loss_kl=self.beta * kl.mean() / bits)

    @torch.no_grad()
    def predict(
        self, inputs: Tensor, data_samples: Sequence[BaseDataElement] | None = None
    ) -> list[BaseDataElement]:
        """Reconstruct and score pictures, and draw a sample of the prior for each.

        The noise is drawn for each picture from ``seed`` and its ``sample_idx`` (its place in the batch if
        there is none), so that the scores do not depend on how the pictures are batched.

        Returns:
            The data samples, or new ones, with ``reconstruction`` and ``prior_sample`` ``(3, size, size)`` in
            [0, 1], and in nats of the 8-bit picture ``negative_elbo``, its part ``kl`` and, if
            ``importance_samples`` is positive, ``importance_bound``, which bounds -log P(k) more tightly.
        """
        samples = list(data_samples) if data_samples else [BaseDataElement() for _ in inputs]
        keys = [sample.get("sample_idx", place) for place, sample in enumerate(samples)]
        count = max(1, self.importance_samples)
        uniform, normal = self._draw_noise(keys, tuple(inputs.shape[1:]), 1 + count)
        noisy = dequantise(inputs, uniform.to(inputs))
        prior, *noises = normal.to(inputs).unbind(1)

        mean, log_var = self.encode(inputs)
        std, kl = (0.5 * log_var).exp(), kl_to_standard_normal(mean, log_var)
        weights = []
        for noise in noises:
            latents = mean + std * noise
            log_likelihood = self.log_likelihood(noisy, latents)
            # log p(z) - log q(z | x); the constants of the two Gaussians cancel.
            log_ratio = 0.5 * (noise.square() + log_var - latents.square()).sum(1)
            weights.append((log_likelihood, log_likelihood + log_ratio))
        fields = dict(
            reconstruction=to_image(self.decode(mean)),
            prior_sample=to_image(self.decode(prior)),
            negative_elbo=kl - weights[0][0],
            kl=kl,
        )
        if self.importance_samples:
            bound = torch.stack([weight for _, weight in weights]).logsumexp(0) - math.log(count)
            fields["importance_bound"] = -bound
        for place, sample in enumerate(samples):
            for name, values in fields.items():
                sample.set_field(values[place], name)
        return samples

    def _draw_noise(self, keys: Sequence[int], shape: tuple[int, ...], rows: int) -> tuple[Tensor, Tensor]:
        """Draw ``(N, *shape)`` uniform and ``(N, rows, latent_channels)`` normal numbers, a key each."""
        generators = [np.random.default_rng((self.seed, int(key))) for key in keys]
        uniform = [rng.random(shape, dtype=np.float32) for rng in generators]
        normal = [rng.standard_normal((rows, self.latent_channels), dtype=np.float32) for rng in generators]
        return torch.from_numpy(np.stack(uniform)), torch.from_numpy(np.stack(normal))

    # --- what the pictures are made with ----------------------------------------------------------

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``(n, 3, size, size)`` pictures of the prior, the same latents for the same generator.

        Raises:
            ValueError: If ``n`` is not a positive integer.
        """
        check_positive(n=n)
        device = generator.device if generator is not None else self.log_std.device
        latents = torch.randn(n, self.latent_channels, generator=generator, device=device)
        return to_image(self.decode(latents.to(self.log_std.device)))

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Decode the posterior means of pictures ``(N, 3, size, size)``: the same shape."""
        return to_image(self.decode(self.encode(images)[0]))

    @torch.no_grad()
    def interpolate(self, a: Tensor, b: Tensor, steps: int) -> Tensor:
        """Decode points on the lines between the posterior means of pictures, ends included.

        Args:
            a: ``(N, 3, size, size)``, where the lines begin.
            b: The same shape, where they end.
            steps: Number of points, at least 2.

        Returns:
            ``(N, steps, 3, size, size)``.

        Raises:
            ValueError: If the shapes differ or ``steps`` is less than 2.
        """
        if not is_int(steps) or steps < 2:
            raise ValueError(f"steps must be an integer of at least 2, got {steps!r}")
        if a.shape != b.shape:
            raise ValueError(f"a and b must have the same shape, got {tuple(a.shape)} and {tuple(b.shape)}")
        start, end = self.encode(a)[0].unsqueeze(1), self.encode(b)[0].unsqueeze(1)
        share = torch.linspace(0, 1, steps, device=start.device).view(1, -1, 1)
        latents = torch.lerp(start, end, share)
        return to_image(self.decode(latents.flatten(0, 1))).unflatten(0, (len(a), steps))
