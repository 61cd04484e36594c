"""PixelDCL and iPixelDCL as layers: arguments, parameters, initialisation, constraint. Plain torch.

Source: Gao, Yuan, Wang, Ji, "Pixel Deconvolutional Networks" (arXiv 1705.06820). As in the paper there is,
unless asked for, no bias and no activation between the maps: normalisation and activation come after.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from . import fixed_upsamplers, functional, kernels
from .arguments import check_choice, check_positive, is_int
from .common import UpsampleLayer, build_activation
from .same_conv import conv

KERNEL_SIZES = (3, 5, 7)
PADDING_MODES = ("zeros", "replicate")
INITS = ("interpolate", "kaiming", "paper")

_Layer = TypeVar("_Layer", bound="PixelUpsample")


class PixelUpsample(UpsampleLayer):
    """What PixelDCL and iPixelDCL share, for maps and for volumes.

    The kernels are parameters of the layer itself, not of ``nn.Conv2d`` children: the ``init_cfg`` of a
    model that holds the layer re-initialises every ``nn.Conv2d`` it finds, after construction.
    """

    spatial_dims = 2
    #: What ``efficient`` may be.
    _forms: tuple[bool, ...] = (True, False)
    _kernel_table: Callable[[int, bool, bool], dict[str, kernels.Kernel]]
    weight_pointwise: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        scale_factor: int = 2,
        efficient: bool = True,
        padding_mode: str = "zeros",
        init: str = "interpolate",
        checkerboard_free: bool = False,
        groups: int | str = 1,
        separable: bool = False,
        bias: bool = False,
        inner_act_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_positive(in_channels=in_channels, out_channels=out_channels)
        check_choice("efficient", efficient, self._forms)
        switches = dict(checkerboard_free=checkerboard_free, separable=separable, bias=bias)
        for name, value in switches.items():
            check_choice(name, value, (True, False))
        if separable and groups not in (1, "out_channels", out_channels):
            raise ValueError(
                f"separable=True makes every map channel by channel, got groups={groups!r}; leave it out"
            )
        group_count = out_channels if separable or groups == "out_channels" else groups
        if not is_int(group_count) or int(group_count) < 1:
            raise ValueError(f"groups must be a positive integer or 'out_channels', got {groups!r}")
        check_choice("kernel_size", kernel_size, KERNEL_SIZES)
        check_choice("padding_mode", padding_mode, PADDING_MODES)
        check_choice("init", init, INITS)
        if not is_int(scale_factor) or scale_factor < 2 or scale_factor & (scale_factor - 1):
            raise ValueError(f"scale_factor must be a power of two (2, 4, 8, ...), got {scale_factor!r}")
        if checkerboard_free and inner_act_cfg is not None:
            raise ValueError(
                f"checkerboard_free=True does not go with inner_act_cfg={inner_act_cfg}: the constraint is "
                "on linear maps. With an activation between them the tap sums can still be held, but the "
                "phases of a constant input agree only where the activation is the identity"
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel_size
        self.scale_factor = scale_factor
        self.efficient = efficient
        self.padding_mode = padding_mode
        self.init = init
        self.checkerboard_free = checkerboard_free
        self.groups = int(group_count)
        self.separable = separable
        self.inner_act = build_activation(inner_act_cfg)

        mixed_channels = out_channels if separable else in_channels
        pointwise = torch.empty(out_channels, in_channels, *[1] * self.spatial_dims)
        self.register_parameter("weight_pointwise", nn.Parameter(pointwise) if separable else None)
        self.kernels = type(self)._kernel_table(kernel_size, efficient, separable)
        for name, kernel in self.kernels.items():
            if (mixed_channels if kernel.reads_input else out_channels) % self.groups and not kernel.dense:
                raise ValueError(
                    f"groups must divide out_channels, for iPixelDCL also in_channels, got {groups!r} with "
                    f"in_channels={in_channels}, out_channels={out_channels}"
                )
            shape = kernel.shape(mixed_channels, out_channels, self.groups)
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))
        self.register_parameter("bias", nn.Parameter(torch.empty(out_channels)) if bias else None)

        # x4, x8, ... repeat the x2 layer. The repeats are the same layer on its own output.
        self.repeat: PixelUpsample | None = None
        if scale_factor > 2:
            self.repeat = type(self)(
                out_channels,
                out_channels,
                kernel_size=kernel_size,
                scale_factor=scale_factor // 2,
                efficient=efficient,
                padding_mode=padding_mode,
                init=init,
                checkerboard_free=checkerboard_free,
                groups=groups,
                separable=separable,
                bias=bias,
                inner_act_cfg=inner_act_cfg,
            )
        self._init_kernels()

    def forward(self, x: Tensor) -> Tensor:
        """Upsample ``(N, in_channels, H, W)`` to ``(N, out_channels, s H, s W)``, s the scale factor.

        A layer for volumes upsamples ``(N, in_channels, D, H, W)``.

        Raises:
            ValueError: If ``x`` has other dimensions or another number of channels.
        """
        if x.dim() != 2 + self.spatial_dims or x.size(1) != self.in_channels:
            sizes = "D, H, W" if self.spatial_dims == 3 else "H, W"
            raise ValueError(
                f"{type(self).__name__} takes an input of shape (N, {self.in_channels}, {sizes}), "
                f"got {tuple(x.shape)}"
            )
        if self.weight_pointwise is not None:
            x = conv(x, self.weight_pointwise)
        x = self._upsample(x, self.effective_weights())
        if self.bias is not None:
            x = x + self.bias.to(x.dtype).view(-1, *[1] * self.spatial_dims)
        return x if self.repeat is None else self.repeat(x)

    def effective_weights(self) -> dict[str, Tensor]:
        """Return the kernels of the maps as the layer applies them: projected if it is checkerboard-free."""
        weights = self._weights()
        return kernels.constrain_dc(weights, self.kernels) if self.checkerboard_free else weights

    def reset_parameters(self) -> None:
        """Initialise every kernel as ``init`` says."""
        self._init_kernels()
        if self.repeat is not None:
            self.repeat.reset_parameters()

    @torch.no_grad()
    def fold(self: _Layer) -> _Layer:
        """Bake the constraint into plain kernels, in place, for inference; return the layer.

        The outputs stay the same and no longer cost the projection. Further training is unconstrained.
        """
        for name, weight in self.effective_weights().items():
            getattr(self, name).copy_(weight)
        self.checkerboard_free = False
        if self.repeat is not None:
            self.repeat.fold()
        return self

    def extra_repr(self) -> str:
        """Show the arguments that are not visible from the children."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"scale_factor={self.scale_factor}, efficient={self.efficient}, "
            f"padding_mode={self.padding_mode!r}, init={self.init!r}, "
            f"checkerboard_free={self.checkerboard_free}, groups={self.groups}, separable={self.separable}, "
            f"bias={self.bias is not None}"
        )

    def _weights(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self.kernels}

    @torch.no_grad()
    def _init_kernels(self) -> None:
        getattr(kernels, f"init_{self.init}")(self._weights(), self.kernels)
        if self.weight_pointwise is not None:
            if self.init == "interpolate" and self.in_channels == self.out_channels:
                nn.init.dirac_(self.weight_pointwise)
            else:
                kernels.draw_preserving_variance(self.weight_pointwise)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def _upsample(self, x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        raise NotImplementedError

    def _options(self) -> dict[str, Any]:
        return dict(padding_mode=self.padding_mode, groups=self.groups, inner_act=self.inner_act)


class PixelDCL(PixelUpsample):
    """Pixel deconvolution: the four phases of the output one after the other, each from those before.

    ``efficient=True`` is Fig. 6 (p00 from the input, p11 from p00, then p01 and p10 from both through one
    shared kernel), computed on its live taps at low resolution; ``efficient=False`` is Fig. 5 with its
    solid lines, a kernel of its own for every pair of maps.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels C of the output.
        kernel_size: 3, 5 or 7. Even kernels have no centre: the mask of Fig. 6 would be stripes.
        scale_factor: 2, 4, 8, ...; more than 2 repeats the x2 layer.
        efficient: Fig. 6 if true, else Fig. 5.
        padding_mode: 'zeros' or 'replicate', for every convolution.
        init: 'interpolate' (the untrained layer is a smooth interpolation, see
            :func:`~pixeldcl_plugin.layers.kernels.init_interpolate`), 'kaiming' (variance-preserving) or
            'paper' (as the authors' code, see :func:`~pixeldcl_plugin.layers.kernels.init_paper`).
        checkerboard_free: Hold the kernels where all phases answer a constant alike, by construction
            (:func:`~pixeldcl_plugin.layers.kernels.constrain_dc`). The parameters and their names are those
            of the plain layer, so that the two load each other's state dicts. The constraint itself is
            computed in float32 at least; what the convolutions round stays. By how much the phases of a
            constant then differ, of the largest value, with random kernels of 16 and 64 channels: 7e-7 in
            float32, 1e-3 in float16, 8e-3 in bfloat16, with autocast or without.
        groups: Groups of the convolutions after the first map. As many as ``out_channels``, or that
            word itself for a config that serves several widths, make the other three phases a learned
            interpolation of each channel by itself.
        separable: A 1 x 1 convolution mixes the channels, then all four phases are made channel by
            channel: a depthwise separable convolution (Chollet, arXiv 1610.02357) in pixel
            deconvolution's order, which is interpolation and a 1 x 1 convolution with the interpolation
            learned. Not in the paper.
        bias: Add one value a channel to the output, the same in all phases; it begins at zero.
        inner_act_cfg: mmcv activation config, applied to each map before the next is made from it (the
            output holds the maps themselves). None, as in the paper, for none.

    Shape:
        ``(N, in_channels, H, W)`` -> ``(N, out_channels, scale_factor H, scale_factor W)``, in the memory
        format of the input.

    Raises:
        ValueError: If an argument is none of the above; the message names the value.
    """

    _kernel_table = staticmethod(kernels.pixel_dcl_kernels)

    def _upsample(self, x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        if self.efficient:
            return functional.pixel_dcl(x, *weights.values(), **self._options())
        return functional.pixel_dcl_full(x, list(weights.values()), **self._options())


class IPixelDCL(PixelUpsample):
    """Input pixel deconvolution: as PixelDCL, but every phase is also made from the input (Fig. 5).

    ``efficient=True`` makes p01 and p10 together, so that p10 does not see p01; ``efficient=False`` makes
    all four one after the other. Arguments, shapes and errors are those of :class:`PixelDCL`; ``groups``
    must divide ``in_channels`` too, since the later maps read the input. With ``separable`` that input is
    what the 1 x 1 convolution made of it.
    """

    _kernel_table = staticmethod(kernels.ipixel_dcl_kernels)

    def _upsample(self, x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        return functional.ipixel_dcl(x, list(weights.values()), **self._options())

    @classmethod
    def from_deconvolution(cls, deconv: nn.ConvTranspose2d, *, efficient: bool = True) -> IPixelDCL:
        """Return a layer that computes what a deconvolution does, and goes on learning from there.

        It is on the device of ``deconv``, in its dtype and mode, and learns if that does.

        Args:
            deconv: One that doubles the size: stride 2 and kernel 2, padding 0; kernel 4, padding 1;
                kernel 6, padding 2; or kernel 3, padding and output padding 1. Groups stay; a depthwise
                one becomes a ``separable`` layer.
            efficient: As of the layer; both forms hold the deconvolution exactly.

        Raises:
            ValueError: If the layer cannot compute the same; the message names why.
        """
        return fixed_upsamplers.from_deconvolution(cls, deconv, efficient=efficient)

    @classmethod
    def from_interpolation(
        cls, channels: int, mode: str = "bilinear", *, scale_factor: int = 2, efficient: bool = True
    ) -> IPixelDCL:
        """Return a ``separable`` layer that interpolates as ``F.interpolate`` does, and learns from there.

        Args:
            channels: Channels of the input and of the output.
            mode: 'nearest', 'nearest-exact', 'bilinear' or 'bicubic', without ``align_corners``.
            scale_factor: 2; with the nearest pixel also 4, 8, ..., which repeat it.
            efficient: As of the layer; both forms hold the interpolation exactly.

        Raises:
            ValueError: If the layer cannot compute the same; the message names why.
        """
        return fixed_upsamplers.from_interpolation(
            cls, channels, mode, scale_factor=scale_factor, efficient=efficient
        )
