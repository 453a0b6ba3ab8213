"""The proposed network: 3-D residual U-Net with concurrent squeeze-and-excitation (Iantsen et al. 2021, Fig. 1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from petseg_train.networks.blocks import Downsampling, ResidualBlock, Upsampling, check_divisible


class ResidualScseUNet(nn.Module):
    """Image `(n, c, z, y, x)` to tumour logits `(n, 1, z, y, x)`; the sides are multiples of `2 ** levels`.

    The first downsampling (7³) comes right after the input, so levels run at 1/2, 1/4, ... of full
    resolution, and only the last upsampling returns to it.

    Parameters
    ----------
    in_channels : imaging modalities; the paper has one, PET.
    base_filters : channels of the first level; they double at each further level.
    levels : resolution levels below full resolution.
    encoder_blocks, decoder_blocks : residual blocks at each level.
    """

    def __init__(
        self,
        in_channels: int = 1,
        base_filters: int = 24,
        levels: int = 4,
        encoder_blocks: int = 2,
        decoder_blocks: int = 1,
    ) -> None:
        super().__init__()
        filters = [base_filters * 2**level for level in range(levels)]
        self.factor = 2**levels

        self.down = nn.ModuleList()
        self.encoder = nn.ModuleList()
        for level, channels in enumerate(filters):
            above, kernel_size = (in_channels, 7) if level == 0 else (filters[level - 1], 3)
            self.down.append(Downsampling(above, channels, kernel_size))
            self.encoder.append(nn.Sequential(*(ResidualBlock(channels, channels) for _ in range(encoder_blocks))))

        self.up = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for below, channels in zip(filters[:0:-1], filters[-2::-1], strict=True):
            self.up.append(Upsampling(below, channels))
            blocks = [ResidualBlock(2 * channels, channels)]  # the skip is concatenated
            blocks += [ResidualBlock(channels, channels) for _ in range(decoder_blocks - 1)]
            self.decoder.append(nn.Sequential(*blocks))

        self.to_full_resolution = Upsampling(base_filters, base_filters)
        self.head = nn.Conv3d(base_filters, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        check_divisible(x, self.factor)
        skips = []
        for down, encoder in zip(self.down, self.encoder, strict=True):
            x = encoder(down(x))
            skips.append(x)
        skips.pop()  # the deepest level is x itself
        for up, decoder in zip(self.up, self.decoder, strict=True):
            x = decoder(torch.cat([up(x), skips.pop()], dim=1))
        return self.head(self.to_full_resolution(x))
