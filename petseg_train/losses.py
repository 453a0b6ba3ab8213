"""The paper's loss, from MONAI."""

import torch
from monai.losses import DiceCELoss, DiceLoss
from torch import Tensor, nn

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


def window_disagreement(logits: Tensor, starts: Tensor) -> Tensor:
    """How far the probabilities of two windows on one patch differ where both see it: eq. 1 between the two.

    Parameters
    ----------
    logits : `(patches, 2, z, y, x)`.
    starts : whole numbers `(patches, 2, 3)`, the first voxels of the windows in the patch.

    Returns
    -------
    Mean over the patches, 0 where the windows agree.
    """
    equation_1, disagreements = DiceLoss(**_EQUATION_1), []
    for pair, begin in zip(torch.sigmoid(logits), starts.tolist()):
        shared = [
            pair[number][
                tuple(
                    slice(max(*both) - own, min(*both) + side - own)
                    for own, both, side in zip(begin[number], zip(*begin), pair.shape[1:])
                )
            ]
            for number in (0, 1)
        ]
        disagreements.append(equation_1(shared[0][None, None], shared[1][None, None]))
    return torch.stack(disagreements).mean()
