"""The two networks are those of the paper."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from petseg_train.networks import NETWORKS
from petseg_train.networks.blocks import ConcurrentSqueezeExcitation, Downsampling, ResidualBlock, Upsampling
from petseg_train.networks.residual_scse_unet import ResidualScseUNet
from petseg_train.networks.standard_unet import StandardUNet


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def kinds(module: nn.Module) -> list[str]:
    return [type(child).__name__ for child in module.children()]


@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize("channels", [1, 2])
def test_logits_at_full_resolution(name: str, channels: int) -> None:
    network = NETWORKS[name](in_channels=channels, base_filters=4).eval()
    with torch.inference_mode():
        assert network(torch.zeros(2, channels, 16, 32, 48)).shape == (2, 1, 16, 32, 48)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_sides_that_cannot_be_halved_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="multiples of"):
        NETWORKS[name](base_filters=4)(torch.zeros(1, 1, 16, 16, 20 + 1))


def test_the_papers_network_has_the_size_that_was_measured() -> None:
    # design facts: 24 base filters, 7.8 M parameters
    assert parameters(ResidualScseUNet(base_filters=24)) == pytest.approx(7.8e6, rel=0.01)


def test_filters_double_over_four_levels() -> None:
    network = ResidualScseUNet(base_filters=24)
    assert [down[0].out_channels for down in network.down] == [24, 48, 96, 192]
    assert [len(encoder) for encoder in network.encoder] == [2, 2, 2, 2]
    assert [len(decoder) for decoder in network.decoder] == [1, 1, 1]


def test_the_first_downsampling_has_a_kernel_of_seven_right_after_the_input() -> None:
    network = ResidualScseUNet()
    convolutions = [down[0] for down in network.down]
    assert [convolution.kernel_size for convolution in convolutions] == [(7, 7, 7), (3, 3, 3), (3, 3, 3), (3, 3, 3)]
    assert all(convolution.stride == (2, 2, 2) for convolution in convolutions)
    assert convolutions[0].in_channels == 1


def test_blocks_are_made_of_the_papers_parts_in_its_order() -> None:
    assert kinds(Downsampling(2, 4)) == ["Conv3d", "InstanceNorm3d", "ReLU", "ConcurrentSqueezeExcitation"]
    assert kinds(Upsampling(4, 2)) == ["ConvTranspose3d", "InstanceNorm3d", "ReLU", "ConcurrentSqueezeExcitation"]
    assert kinds(ResidualBlock(4, 4).residual) == [
        "InstanceNorm3d",
        "ReLU",
        "Conv3d",
        "InstanceNorm3d",
        "ReLU",
        "Conv3d",
        "ConcurrentSqueezeExcitation",
    ]
    assert ResidualScseUNet().head.kernel_size == (1, 1, 1)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_norm_is_an_affine_instance_norm(name: str) -> None:
    norms = [module for module in NETWORKS[name]().modules() if "Norm" in type(module).__name__]
    assert norms
    assert all(isinstance(norm, nn.InstanceNorm3d) and norm.affine for norm in norms)


def test_the_residual_branch_is_gated_before_the_addition() -> None:
    block = ResidualBlock(4, 4)
    x = torch.randn(1, 4, 8, 8, 8)
    for parameter in block.residual[-1].parameters():  # gates at sigmoid(-100) = 0 shut the branch
        nn.init.zeros_(parameter)
    nn.init.constant_(block.residual[-1].channel_gate[3].bias, -100.0)
    nn.init.constant_(block.residual[-1].spatial_gate[0].bias, -100.0)
    torch.testing.assert_close(block(x), x)


def test_scse_is_the_sum_of_the_two_gated_maps() -> None:
    scse = ConcurrentSqueezeExcitation(6)
    x = torch.randn(2, 6, 4, 5, 3)
    mean = x.mean(dim=(2, 3, 4))
    squeeze, excite = scse.channel_gate[1], scse.channel_gate[3]
    assert squeeze.out_channels == 3
    hidden = torch.relu(mean @ squeeze.weight[:, :, 0, 0, 0].T + squeeze.bias)
    channel = torch.sigmoid(hidden @ excite.weight[:, :, 0, 0, 0].T + excite.bias)
    space = scse.spatial_gate[0]
    spatial = torch.sigmoid(torch.einsum("nczyx,c->nzyx", x, space.weight[0, :, 0, 0, 0]) + space.bias)
    torch.testing.assert_close(scse(x), x * channel[:, :, None, None, None] + x * spatial[:, None])


def test_the_baseline_pools_and_has_neither_gates_nor_residuals() -> None:
    network = StandardUNet(base_filters=24)
    names = {type(module).__name__ for module in network.modules()}
    assert "MaxPool3d" in names
    assert not names & {"ConcurrentSqueezeExcitation", "ResidualBlock", "Sigmoid"}
    assert [encoder[0].out_channels for encoder in network.encoder] == [24, 48, 96, 192]
    assert all(kinds(block) == ["Conv3d", "InstanceNorm3d", "ReLU"] * 2 for block in network.encoder)
