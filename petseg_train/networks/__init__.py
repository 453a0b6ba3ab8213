"""The two networks of the study, by name."""

from torch import nn

from petseg_train.networks.residual_scse_unet import ResidualScseUNet
from petseg_train.networks.standard_unet import StandardUNet

NETWORKS: dict[str, type[nn.Module]] = {"residual_scse_unet": ResidualScseUNet, "standard_unet": StandardUNet}
