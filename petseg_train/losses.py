"""The paper's loss, from MONAI."""

from monai.losses import DiceCELoss, DiceLoss
from torch import nn

_EQUATION_1 = {"squared_pred": True, "smooth_nr": 1.0, "smooth_dr": 1.0, "reduction": "mean"}


def soft_dice_loss(cross_entropy_weight: float = 0.0) -> nn.Module:
    """Soft Dice on logits: 1 - (2 Σ yŷ + 1) / (Σ y² + Σ ŷ² + 1) of each example, averaged over the batch (eq. 1).

    Parameters
    ----------
    cross_entropy_weight : share of binary cross-entropy added to it. In a window without tumour the gradient of the
        soft Dice falls with the square of what is wrongly predicted, so it cannot mend a large false positive.
    """
    if cross_entropy_weight:
        return DiceCELoss(sigmoid=True, **_EQUATION_1, lambda_ce=cross_entropy_weight)
    return DiceLoss(sigmoid=True, **_EQUATION_1)
