"""The baseline: the standard 3-D U-Net (Çiçek et al., MICCAI 2016), as wide and deep as the proposed network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from petseg_train.networks.blocks import PlainBlock, check_divisible


class StandardUNet(nn.Module):
    """Image `(n, c, z, y, x)` to tumour logits `(n, 1, z, y, x)`; the sides are multiples of `2 ** (levels - 1)`.

    Two convolutions a level, max pooling down, transposed convolution 2³ up, skips concatenated.

    Parameters
    ----------
    in_channels : imaging modalities.
    base_filters : channels of the first level; they double at each further level.
    levels : resolution levels, the first at full resolution.
    """

    def __init__(self, in_channels: int = 1, base_filters: int = 24, levels: int = 4) -> None:
        super().__init__()
        filters = [base_filters * 2**level for level in range(levels)]
        self.factor = 2 ** (levels - 1)

        self.encoder = nn.ModuleList()
        for above, channels in zip([in_channels, *filters], filters):
            self.encoder.append(PlainBlock(above, channels))
        self.pool = nn.MaxPool3d(2)

        self.up = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for below, channels in zip(filters[:0:-1], filters[-2::-1], strict=True):
            self.up.append(nn.ConvTranspose3d(below, channels, 2, stride=2))
            self.decoder.append(PlainBlock(2 * channels, channels))

        self.head = nn.Conv3d(base_filters, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        check_divisible(x, self.factor)
        skips = []
        for level, encoder in enumerate(self.encoder):
            x = encoder(self.pool(x) if level else x)
            skips.append(x)
        skips.pop()  # the deepest level is x itself
        for up, decoder in zip(self.up, self.decoder, strict=True):
            x = decoder(torch.cat([up(x), skips.pop()], dim=1))
        return self.head(x)
