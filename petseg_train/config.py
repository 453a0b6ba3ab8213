"""Training settings: three presets, and any of their fields changed by a JSON file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from petseg_runtime.errors import ModelError, UsageError
from petseg_runtime.manifest import MAX_OVERLAP, MAX_PATCH_SIDE, THRESHOLD_RANGE, PreprocessingSpec, is_threshold
from petseg_runtime.outputs.files import whole_file
from petseg_train.augmentation import Augmentation
from petseg_train.field_types import check_types
from petseg_train.networks import NETWORKS

# The paper's 4 x 4 x 2 mm. Tissue takes up about 0.5 SUV in the median and air in a PET shows below 0.05, so a
# fifth of the median parts them on every scan seen; 20 mm of margin keep the skin away from the window's edge.
PREPROCESSING = PreprocessingSpec(spacing_mm=(2.0, 4.0, 4.0), body_threshold=0.2, body_margin_mm=20.0)


@dataclass(frozen=True)
class TrainingConfig:
    """All that a training run depends on beside its data; stored in the checkpoint.

    Attributes
    ----------
    network, network_settings : name in `petseg_train.networks.NETWORKS` and its arguments.
    patch_size : voxels `(z, y, x)`, in training as at run time.
    fit_multiple : where not 0, a patch is no wider than the body's box, rounded up to this multiple, in training as at
        run time (`petseg_runtime.sliding_window.fitted_window`).
    epochs, patches_per_epoch : length of the training. The cases take turns; None is one random patch of each case, the
        paper's epoch. A number makes the training as long for a fold of few cases as for one of many.
    restart_epochs : length of one cosine cycle of the learning rate.
    weight_averaging : where not 0, the model is the exponential moving average of the weights, with this decay a step.
        It evens out what the last patches of a high learning rate and small batches did; the paper has none.
    cross_entropy_weight : see `petseg_train.losses`; the paper has none.
    tumour_share, bright_share, uptake_share, crop_share, stretch_share, centres_take_turns : see
        `petseg_train.dataset.PatchDataset`.
    precision : Lightning's name, "32-true", "16-mixed" or "bf16-mixed"; the last runs in 32 bits on a CPU that has no
        bf16 instructions, where emulating them takes twice as long.
    tuning_share : share of the training cases set aside to watch the training.
    """

    network: str = "residual_scse_unet"
    network_settings: dict[str, int] = field(default_factory=lambda: {"base_filters": 24})
    preprocessing: PreprocessingSpec = PREPROCESSING
    augmentation: Augmentation = Augmentation()
    patch_size: tuple[int, int, int] = (64, 128, 128)
    fit_multiple: int = 0
    patches_per_epoch: int | None = None
    tumour_share: float = 0.67
    bright_share: float = 0.0
    uptake_share: float = 0.0
    crop_share: float = 0.0
    stretch_share: float = 0.0
    centres_take_turns: bool = False
    cross_entropy_weight: float = 0.0
    batch_size: int = 2
    epochs: int = 400
    restart_epochs: int = 25
    learning_rate: tuple[float, float] = (1e-4, 1e-6)
    weight_averaging: float = 0.0
    adam_betas: tuple[float, float] = (0.9, 0.99)
    precision: str = "32-true"
    tuning_share: float = 0.2
    tuning_every_epochs: int = 5
    overlap: float = 0.5
    threshold: float = 0.5
    seed: int = 2021

    def __post_init__(self) -> None:
        check_types(self)
        if self.network not in NETWORKS:
            raise UsageError(f"Network {self.network!r} is unknown; there are {', '.join(NETWORKS)}.")
        counts = ("epochs", "batch_size", "restart_epochs", "tuning_every_epochs")
        shares = ("tumour_share", "bright_share", "uptake_share", "crop_share", "stretch_share", "tuning_share")
        for name, fits, expected in (
            *((name, getattr(self, name) >= 1, "at least 1") for name in counts),
            *((name, 0 <= getattr(self, name) <= 1, "0 to 1") for name in shares),
            ("patches_per_epoch", self.patches_per_epoch is None or self.patches_per_epoch >= 1, "at least 1"),
            ("patch_size", len(self.patch_size) == 3, "three sides (z, y, x)"),
            ("patch_size", max(self.patch_size, default=0) <= MAX_PATCH_SIDE, f"sides up to {MAX_PATCH_SIDE}"),
            ("fit_multiple", self._sides_are_multiples(), f"0, or what the sides {self.patch_size} are multiples of"),
            ("overlap", 0 <= self.overlap <= MAX_OVERLAP, f"0 to {MAX_OVERLAP}"),
            ("threshold", is_threshold(self.threshold), "{:g} to {:g}".format(*THRESHOLD_RANGE)),
            ("network_settings", all(value >= 1 for value in self.network_settings.values()), "numbers from 1 on"),
            ("network_settings", self.network_settings.get("in_channels", 1) == 1, "in_channels of 1: the PET"),
            ("seed", self.seed >= 0, "at least 0"),
            ("adam_betas", all(0 <= beta < 1 for beta in self.adam_betas), "two numbers of at least 0 and below 1"),
            ("learning_rate", self.learning_rate[0] >= self.learning_rate[1] > 0, "the highest, then the lowest"),
            ("weight_averaging", 0 <= self.weight_averaging < 1, "at least 0 and below 1"),
            ("cross_entropy_weight", self.cross_entropy_weight >= 0, "at least 0"),
            ("bright_share", self.tumour_share + self.bright_share <= 1, "no more than 1 with tumour_share"),
            ("crop_share", self.crop_share + self.stretch_share <= 1, "no more than 1 with stretch_share"),
            ("precision", self.precision in ("32-true", "bf16-mixed", "16-mixed"), "32-true, bf16-mixed or 16-mixed"),
        ):
            if not fits:
                raise UsageError(f"{name} is {getattr(self, name)}, expected {expected}.")

    def _sides_are_multiples(self) -> bool:
        multiple = self.fit_multiple
        return multiple == 0 or (multiple > 0 and all(side % multiple == 0 for side in self.patch_size))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(fields: dict[str, Any]) -> TrainingConfig:
        """Rebuild from `to_dict` or from JSON; absent fields keep their defaults.

        Raises
        ------
        UsageError : if a field is unknown or its value refused.
        """
        fields = dict(fields)
        if unknown := fields.keys() - TrainingConfig.__dataclass_fields__.keys():
            raise UsageError(f"The training configuration has fields that are unknown: {', '.join(sorted(unknown))}.")
        try:
            for name, kind in (("preprocessing", PreprocessingSpec), ("augmentation", Augmentation)):
                if name in fields:
                    fields[name] = kind(**_tuples(dict(fields[name])))
            return TrainingConfig(**_tuples(fields))
        except (TypeError, ValueError, ModelError) as error:
            raise UsageError(f"The training configuration cannot be used: {error}.") from error


PRESETS = {
    # The paper's patch is wider than most bodies; what it would hold of air beyond them is left out, which halves the
    # work at run time. The smaller overlap of the windows costs no accuracy (docs/performance.md).
    "paper": TrainingConfig(fit_multiple=16, overlap=0.25),
    # Two cores and an hour: fewer filters, smaller patches that overlap less, and fewer epochs, which a higher learning
    # rate in one cycle makes up for. Patches this small hold no tumour now and then, at run time too, so they are
    # taught with cross-entropy, and at what outshines tumours. A network trained this shortly marks too little at 0.5.
    "cpu": TrainingConfig(
        network_settings={"base_filters": 12},
        patch_size=(64, 64, 64),
        tumour_share=0.5,
        bright_share=0.4,
        cross_entropy_weight=4.0,
        epochs=100,
        restart_epochs=100,
        patches_per_epoch=40,
        tuning_every_epochs=100,
        learning_rate=(3e-3, 1e-5),
        weight_averaging=0.99,
        precision="bf16-mixed",
        overlap=0.25,
        threshold=0.4,
    ),
    # Every step of a study in minutes; what it learns means nothing.
    "smoke": TrainingConfig(
        network_settings={"base_filters": 4, "levels": 3},
        patch_size=(32, 32, 32),
        epochs=2,
        patches_per_epoch=4,
        learning_rate=(1e-3, 1e-5),
        overlap=0.25,
    ),
}


def load_config(name_or_path: str, **changes: Any) -> TrainingConfig:
    """A preset by name, or a JSON file of fields (with an optional "preset" to start from), with `changes` on top.

    Raises
    ------
    UsageError : if there is no such preset or file, or a field is unknown.
    """
    if name_or_path in PRESETS:
        return replace(PRESETS[name_or_path], **changes)
    try:
        fields = json.loads(Path(name_or_path).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"Config {name_or_path!r} is neither a preset ({', '.join(PRESETS)}) nor a readable JSON file: {error}"
        ) from error
    name = fields.pop("preset", "paper") if isinstance(fields, dict) else None
    if name not in tuple(PRESETS):
        raise UsageError(f"Config {name_or_path!r} is not a JSON object that starts from {' or '.join(PRESETS)}.")
    return replace(TrainingConfig.from_dict(_merged(PRESETS[name].to_dict(), fields)), **changes)


def claim(file: Path, settings: dict[str, Any], otherwise: str) -> None:
    """Write the settings of a new folder, or check that an old one was made with the same, see `check_claim`."""
    check_claim(file, settings, otherwise)
    if not file.exists():
        with whole_file(file) as temporary:
            temporary.write_text(json.dumps(settings, indent=1))


def check_claim(file: Path, settings: dict[str, Any], otherwise: str) -> None:
    """Check that the folder of `file` is new, or was made with the same settings.

    A field that the config did not have then counts as its default, and "further", the digest of what only scores
    depend on, as what it is now.

    Parameters
    ----------
    settings : JSON values, with a (perhaps partial) config under "config".
    otherwise : sentence of the refusal.

    Raises
    ------
    UsageError : if the settings differ, or the file cannot be read.
    """
    if not file.exists():
        return
    try:
        before, now = _complete(json.loads(file.read_text())), _complete(json.loads(json.dumps(settings)))
        if "further" in now:
            before.setdefault("further", now["further"])
        differs = [name for name in before | now if before.get(name) != now.get(name)]
    except (ValueError, KeyError, TypeError, UsageError):
        differs = ["all, as it cannot be read"]
    if differs == ["further"]:
        raise UsageError(f"{otherwise} Stages or further masks differ. Choose another --output: --work is kept.")
    if differs:
        to_do = "Choose another folder with --output, or --work of a study."
        raise UsageError(f"{otherwise} What differs: {', '.join(differs)}. {to_do}")


def _complete(settings: dict[str, Any]) -> dict[str, Any]:
    return settings | {"config": TrainingConfig.from_dict(settings["config"]).to_dict()}


def _merged(fields: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`fields` with `changes`, which may name some fields of a nested dict and leave the others."""
    nested = {
        key: _merged(fields[key], change)
        for key, change in changes.items()
        if isinstance(change, dict) and isinstance(fields.get(key), dict)
    }
    return {**fields, **changes, **nested}


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
