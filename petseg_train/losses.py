"""The paper's loss, from MONAI."""

from monai.losses import DiceLoss


def soft_dice_loss() -> DiceLoss:
    """Soft Dice on logits: 1 - (2 Σ yŷ + 1) / (Σ y² + Σ ŷ² + 1) of each example, averaged over the batch (eq. 1)."""
    return DiceLoss(sigmoid=True, squared_pred=True, smooth_nr=1.0, smooth_dr=1.0, reduction="mean")
