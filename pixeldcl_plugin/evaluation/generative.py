"""Scores of a variational autoencoder: bounds of the likelihood, reconstructions, checkerboard of samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from torch import Tensor

from ..registry import register
from .checkerboard import nyquist_energy

__all__ = ["VAEMetric"]


@register(METRICS)
class VAEMetric(BaseMetric):
    """Scores what :meth:`pixeldcl_plugin.models.vae.VAE.predict` gives, averaged over the pictures.

    - ``nelbo``: the negative ELBO in nats a picture, of its 8-bit values; ``bpd``: the same in bits a
      dimension (a picture has channels x height x width of them); ``kl``: its KL term in nats.
    - ``iw_nelbo``, ``iw_bpd``: the importance-weighted bound likewise, where the model computes it.
    - ``psnr`` (dB) and ``ssim`` of the reconstructions, on values in [0, 1].
    - ``nyquist_samples``, ``nyquist_reconstructions``, ``nyquist_images``: the energy at the period-two
      frequencies relative to the spectrum around them, see
      :func:`~pixeldcl_plugin.evaluation.checkerboard.nyquist_energy`. That of the real images is what the
      other two should be: above it there is a checkerboard, below it there is none and detail is missing.

    Args:
        collect_device: As in any mmengine metric.
        prefix: Likewise.
    """

    def process(self, data_batch: Mapping[str, Any], data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Score a batch.

        Args:
            data_batch: ``inputs``, the uint8 pictures.
            data_samples: The predictions as dicts.
        """
        # Imported here: it takes a second, and only this metric needs it.
        from torchmetrics.functional.image import peak_signal_noise_ratio

        inputs = data_batch["inputs"]
        images = (inputs if isinstance(inputs, Tensor) else torch.stack(list(inputs))).cpu().float() / 255
        made = _stack(data_samples, "reconstruction")
        scores = dict(
            nelbo=_stack(data_samples, "negative_elbo"),
            kl=_stack(data_samples, "kl"),
            psnr=peak_signal_noise_ratio(made, images, data_range=1.0, reduction="none", dim=(1, 2, 3)),
            ssim=_ssim(made, images),
            nyquist_samples=nyquist_energy(_stack(data_samples, "prior_sample")),
            nyquist_reconstructions=nyquist_energy(made),
            nyquist_images=nyquist_energy(images),
        )
        scores["bpd"] = scores["nelbo"] / (images[0].numel() * math.log(2))
        if "importance_bound" in data_samples[0]:
            scores["iw_nelbo"] = _stack(data_samples, "importance_bound")
            scores["iw_bpd"] = scores["iw_nelbo"] / (images[0].numel() * math.log(2))
        for place in range(len(images)):
            self.results.append({name: float(values[place]) for name, values in scores.items()})

    def compute_metrics(self, results: list[dict[str, float]]) -> dict[str, float]:
        """Average the scores of all pictures."""
        order = ("bpd", "psnr", "ssim")  # first, as the curves of a training show three
        names = [*order, *(name for name in results[0] if name not in order)]
        return {name: math.fsum(result[name] for result in results) / len(results) for name in names}


def _ssim(made: Tensor, images: Tensor) -> Tensor:
    """Give the SSIM of each picture: ``(N,)``."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    values = structural_similarity_index_measure(made, images, data_range=1.0, reduction="none")
    return torch.as_tensor(values).reshape(-1)  # of a single picture it is no vector


def _stack(data_samples: Sequence[Mapping[str, Any]], name: str) -> Tensor:
    return torch.stack([sample[name] for sample in data_samples]).cpu().float()
