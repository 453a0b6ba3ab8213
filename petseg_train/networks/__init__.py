"""The two networks of the study, by name."""

from petseg_train.networks.residual_scse_unet import ResidualScseUNet
from petseg_train.networks.standard_unet import StandardUNet

Network = ResidualScseUNet | StandardUNet

NETWORKS: dict[str, type[Network]] = {"residual_scse_unet": ResidualScseUNet, "standard_unet": StandardUNet}
