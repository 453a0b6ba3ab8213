"""Building blocks of the networks: scSE, the pre-activation residual block, learnable down- and upsampling.

Tensors are `(n, c, z, y, x)`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConcurrentSqueezeExcitation(nn.Module):
    """scSE: the sum of a channel-gated and a space-gated copy of the input (Roy et al., MICCAI 2018).

    Channel gate: global mean -> 1x1x1 to C/2 -> ReLU -> 1x1x1 -> sigmoid.
    Spatial gate: 1x1x1 to one channel -> sigmoid.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels < 2:
            raise ValueError(f"scSE halves its channels and needs two at least, got {channels}")
        self.channel_gate = nn.Sequential(
            nn.AdaptiveAvgPool3d(1),
            nn.Conv3d(channels, channels // 2, 1),
            nn.ReLU(),
            nn.Conv3d(channels // 2, channels, 1),
            nn.Sigmoid(),
        )
        self.spatial_gate = nn.Sequential(nn.Conv3d(channels, 1, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        # x * c + x * s in one pass over the feature map
        return x * (self.channel_gate(x) + self.spatial_gate(x))


class ResidualBlock(nn.Module):
    """Full pre-activation residual block (norm, ReLU, conv 3³, twice) with scSE on the residual branch.

    The scSE stands before the addition, as in SE-ResNet. A 1x1x1 convolution carries the identity where the
    number of channels changes.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.InstanceNorm3d(in_channels, affine=True),
            nn.ReLU(),
            nn.Conv3d(in_channels, out_channels, 3, padding=1),
            nn.InstanceNorm3d(out_channels, affine=True),
            nn.ReLU(),
            nn.Conv3d(out_channels, out_channels, 3, padding=1),
            ConcurrentSqueezeExcitation(out_channels),
        )
        self.identity = nn.Identity() if in_channels == out_channels else nn.Conv3d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.identity(x) + self.residual(x)


class Downsampling(nn.Sequential):
    """Strided convolution (halves each axis), instance norm, ReLU, scSE."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> None:
        super().__init__(
            nn.Conv3d(in_channels, out_channels, kernel_size, stride=2, padding=kernel_size // 2),
            nn.InstanceNorm3d(out_channels, affine=True),
            nn.ReLU(),
            ConcurrentSqueezeExcitation(out_channels),
        )


class Upsampling(nn.Sequential):
    """Transposed convolution 3³ (doubles each axis), instance norm, ReLU, scSE."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.ConvTranspose3d(in_channels, out_channels, 3, stride=2, padding=1, output_padding=1),
            nn.InstanceNorm3d(out_channels, affine=True),
            nn.ReLU(),
            ConcurrentSqueezeExcitation(out_channels),
        )


class PlainBlock(nn.Sequential):
    """The standard U-Net's level: convolution 3³, instance norm, ReLU, twice."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv3d(in_channels, out_channels, 3, padding=1),
            nn.InstanceNorm3d(out_channels, affine=True),
            nn.ReLU(),
            nn.Conv3d(out_channels, out_channels, 3, padding=1),
            nn.InstanceNorm3d(out_channels, affine=True),
            nn.ReLU(),
        )


def check_divisible(x: Tensor, factor: int) -> None:
    """Refuse a patch whose sides the network cannot halve evenly.

    Raises
    ------
    ValueError : if a spatial side of `x` is not a multiple of `factor`.
    """
    # A traced graph has its sides fixed, and the check has no place in it.
    if not torch.compiler.is_exporting() and any(side % factor for side in x.shape[2:]):
        raise ValueError(f"patch is {tuple(x.shape[2:])}, expected sides that are multiples of {factor}")
