"""Training with Lightning: the module, the run folder, and exact resume.

A run folder holds `run.json` (settings and split), `last.ckpt` (after each epoch), `lightning_logs` for TensorBoard and
`done.json`. Calling `fit` on it again goes on where it stopped: all randomness follows from the seed, the epoch and
the number of a batch, so on a CPU the weights are those of an uninterrupted run, bit for bit.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import pickle
import signal
import subprocess
import time
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from torch import Tensor
from torch.utils.data import DataLoader

from petseg_runtime.errors import InputError, ModelError, UsageError
from petseg_runtime.outputs.files import prepare_folder, whole_file, write_json
from petseg_runtime.sliding_window import fitted_window, sliding_window_probabilities
from petseg_train.cohort import Case, TrainingCase, check_no_twins, cohort_digest, load_training_cases
from petseg_train.config import TrainingConfig, claim
from petseg_train.dataset import PatchDataset, PatchSampler
from petseg_train.losses import soft_dice_loss
from petseg_train.metrics import dice
from petseg_train.networks import NETWORKS, Network
from petseg_train.networks.exported import network_of_model

# The logit of 2 %: most voxels are no tumour, and a network that begins so spends no epochs on learning it (Lin et al.,
# Focal loss for dense object detection, ICCV 2017, section 4.1).
_FIRST_LOGIT = -4.0


class SegmentationModule(lightning.LightningModule):
    """A network with the paper's loss and optimiser; its settings travel in the checkpoint."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.config = TrainingConfig.from_dict(config)
        self.network = build_network(self.config)
        self.memory_format = torch.channels_last_3d  # of the network and its patches
        self.loss = soft_dice_loss(self.config.cross_entropy_weight)
        # Of the checkpoint it was loaded from; and what its training began with, None where that was chance.
        self.trained_epochs, self.trained_by = 0, "unknown"
        self.pretrained_sha256: str | None = None
        self.longest_body_mm = 0.0  # of all that it was trained on, what it began with included; 0 if not known

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["petseg_commit"] = _commit()
        checkpoint["petseg_pretrained"] = self.pretrained_sha256
        checkpoint["petseg_longest_body_mm"] = self.longest_body_mm

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.trained_epochs = checkpoint["epoch"] + 1
        self.trained_by = checkpoint.get("petseg_commit", "unknown")
        self.pretrained_sha256 = checkpoint.get("petseg_pretrained")
        self.longest_body_mm = checkpoint.get("petseg_longest_body_mm", self.longest_body_mm)

    def on_train_epoch_start(self) -> None:
        self._epoch_start, self._network_s = time.perf_counter(), 0.0

    def on_train_batch_start(self, *_: object) -> None:
        self._batch_start = time.perf_counter()

    def on_train_batch_end(self, *_: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()  # its work goes on after the call
        self._batch_end = time.perf_counter()
        self._network_s += self._batch_end - self._batch_start

    def on_train_epoch_end(self) -> None:
        # What is left of the time up to the last batch went into patches: their augmentation, and waiting for them.
        self.log("train/network_share", self._network_s / (self._batch_end - self._epoch_start), sync_dist=True)

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        images, masks = batch["image"][:, None], batch["mask"][:, None]
        logits = self.network(images.to(memory_format=self.memory_format)).float()
        loss: Tensor = self.loss(logits, masks)
        if not torch.isfinite(loss):
            kept = "; last.ckpt is of the epoch before" if self.current_epoch else ""
            raise ModelError(
                f"The loss is {loss.item()} in epoch {self.current_epoch}: the training has diverged{kept}. Train "
                "with a lower learning rate, in another folder."
            )
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True, batch_size=1)
        return loss

    def validation_step(self, index: int) -> None:
        case = self.trainer.datamodule.tuning[index]
        probabilities = sliding_window_probabilities(
            case.image,
            fitted_window(self.config.patch_size, self.config.fit_multiple, case.image.shape),
            self.config.overlap,
            case.air,
            self._predict,
        )
        dsc = dice(probabilities >= self.config.threshold, case.mask > 0)
        self.log("tune/dsc", dsc, prog_bar=True, batch_size=1, sync_dist=True)

    def _predict(self, windows: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for window in windows:
            tensor = torch.from_numpy(window).to(self.device, memory_format=self.memory_format)
            yield torch.sigmoid(self.network(tensor).float()).cpu().numpy()

    def configure_optimizers(self) -> Any:
        highest, lowest = self.config.learning_rate
        optimiser = torch.optim.Adam(self.parameters(), lr=highest, betas=self.config.adam_betas)
        schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(
            optimiser, T_0=self.config.restart_epochs, eta_min=lowest
        )
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}


class PatchDataModule(lightning.LightningDataModule):
    """Loaders of the training patches, and of the whole tuning cases."""

    def __init__(
        self, training: Sequence[TrainingCase], tuning: Sequence[TrainingCase], config: TrainingConfig
    ) -> None:
        super().__init__()
        self.tuning, self.config = list(tuning), config
        self.patches = PatchDataset(training, config)

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        sampler = PatchSampler(len(self.patches), self.config.seed, rank, world_size)
        return DataLoader(self.patches, batch_size=None, sampler=sampler)

    def val_dataloader(self) -> DataLoader[int]:
        # The cases differ in size, so their indices travel. A range is a dataset in all but its declared type.
        return DataLoader(range(len(self.tuning)), batch_size=None)  # type: ignore[arg-type]


def build_network(config: TrainingConfig) -> Network:
    """The network of the config, with weights that follow from its seed.

    Raises
    ------
    UsageError : if the patch cannot be halved as often as the network halves it, and still have two voxels a side.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            network = NETWORKS[config.network](**config.network_settings)
            torch.nn.init.constant_(network.head.get_parameter("bias"), _FIRST_LOGIT)
        except (TypeError, ValueError, RuntimeError, IndexError, ZeroDivisionError) as error:
            raise UsageError(f"network_settings do not fit {config.network}: {error}") from error
    if config.fit_multiple % network.factor:
        raise UsageError(f"fit_multiple is {config.fit_multiple}, expected 0 or a multiple of {network.factor}.")
    if any(side % network.factor or side < 2 * network.factor for side in config.patch_size):
        raise UsageError(
            f"patch_size is {config.patch_size}, expected multiples of {network.factor}, from {2 * network.factor} on."
        )
    return network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # missing in torch's stubs


def split_tuning(cases: Sequence[Case], config: TrainingConfig) -> tuple[list[Case], list[Case]]:
    """Training and tuning cases; the tuning cases are drawn with the config's seed."""
    count = round(len(cases) * config.tuning_share)
    drawn = set(np.random.default_rng(config.seed).permutation(len(cases))[:count].tolist())
    training = [case for index, case in enumerate(cases) if index not in drawn]
    return training, [case for index, case in enumerate(cases) if index in drawn]


def fit(
    cases: Sequence[Case],
    config: TrainingConfig,
    run_dir: Path,
    devices: int = 1,
    accelerator: str = "auto",
    cache: Path | None = None,
    cohort: str | None = None,
    pretrained: Path | None = None,
    only_train: Sequence[Sequence[Case]] = (),
) -> Path:
    """Train on `cases`, resuming what `run_dir` holds; returns the final checkpoint.

    Parameters
    ----------
    cases : all cases that may be trained on; `config.tuning_share` of them only watch.
    devices : processes of data-parallel training (DDP); gloo on CPUs, NCCL on GPUs.
    cache : folder of preprocessed cases, see `load_training_cases`; default in `run_dir`.
    cohort : says which cases these are; default the digest of their files.
    pretrained : checkpoint or ONNX file of the same network, whose weights the training begins with.
    only_train : further cohorts to train on, no case of which watches.

    Raises
    ------
    UsageError : if `run_dir` holds a run with other settings or other cases, another process trains in it, or there
        are too few cases.
    InputError : if two cases have the same image, or no training case has a tumour.
    ModelError : if `pretrained` does not hold the same network.
    """
    training, tuning = split_tuning(cases, config)
    never_watching = [*chain(*only_train)]
    trained_on = [*training, *never_watching]
    splits = {"training": [case.name for case in trained_on], "tuning": [case.name for case in tuning]}
    patches = config.patches_per_epoch or len(trained_on)
    if not trained_on or patches < config.batch_size * devices:
        raise UsageError(
            f"{len(trained_on)} training cases and {patches} patches an epoch do not fill a batch of "
            f"{config.batch_size} on {devices} devices."
        )
    module = SegmentationModule(config.to_dict())  # before anything is written: it refuses what cannot be built
    cohort = cohort_digest([*cases, *never_watching]) if cohort is None else cohort
    settings: dict[str, Any] = {"config": config.to_dict(), "cohort": cohort, "splits": splits}
    if pretrained is not None:
        _begin_with(module, pretrained)
        settings["pretrained_sha256"] = module.pretrained_sha256
    prepare_folder(run_dir)
    checkpoint = run_dir / "last.ckpt"
    if checkpoint.exists():
        _claim_run_dir(run_dir, settings)
    if (run_dir / "done.json").exists() and checkpoint.exists():
        return checkpoint
    with _only_process(run_dir):
        trainer = _trainer(config, run_dir, devices, accelerator)
        module.memory_format = fastest_memory_format(trainer.precision, trainer.strategy.root_device.type)
        module.network.to(memory_format=module.memory_format)  # type: ignore[call-overload]  # missing in torch's stubs
        if _is_first_process():
            (run_dir / "done.json").unlink(missing_ok=True)  # of a checkpoint that is gone
        cache = run_dir / "preprocessed" if cache is None else cache
        loaded = load_training_cases(training, config.preprocessing, cache)
        for number, further in enumerate(only_train, 1):
            turn = f"only train, {number}"
            loaded += [replace(case, turn=turn) for case in load_training_cases(further, config.preprocessing, cache)]
        if pretrained is None or module.longest_body_mm:  # else what it began with has seen nobody knows what
            longest = max(len(case.image) for case in loaded) * config.preprocessing.spacing_mm[0]
            module.longest_body_mm = max(module.longest_body_mm, longest)
        watching = load_training_cases(tuning, config.preprocessing, cache)
        check_no_twins((case.name, case.image) for case in (*loaded, *watching))
        if not any(case.mask.any() for case in loaded):
            raise InputError("No training case has a tumour in its mask, on the grid of the network. Outline some.")
        data = PatchDataModule(loaded, watching, config)
        if _is_first_process():
            _claim_run_dir(run_dir, settings)  # only now: refused cases are repaired, and are then others
        _train(module, data, trainer, checkpoint)
    return checkpoint


def _begin_with(module: SegmentationModule, pretrained: Path) -> None:
    if pretrained.suffix == ".onnx":
        source, manifest = network_of_model(pretrained)
        settings = dict(manifest.training["network"])
        name, longest_body_mm = settings.pop("name"), manifest.longest_body_mm
    else:
        trained = load_module(pretrained)
        source, longest_body_mm = trained.network, trained.longest_body_mm
        name, settings = trained.config.network, trained.config.network_settings
    if (name, settings) != (module.config.network, module.config.network_settings):
        raise ModelError(
            f"{pretrained.name} holds a {name} with {settings}, expected the "
            f"config's {module.config.network} with {module.config.network_settings}."
        )
    module.network.load_state_dict(source.state_dict())
    module.longest_body_mm = longest_body_mm
    module.pretrained_sha256 = hashlib.sha256(pretrained.read_bytes()).hexdigest()


def _train(module: SegmentationModule, data: PatchDataModule, trainer: lightning.Trainer, checkpoint: Path) -> None:
    """Train to the end, from the checkpoint where there is one, and write `done.json`."""
    try:
        trainer.fit(module, data, ckpt_path=checkpoint if checkpoint.exists() else None, weights_only=True)
    except SIGTERMException as stop:  # a SystemExit that says success
        raise SystemExit(128 + signal.SIGTERM) from stop
    except SystemExit as stop:  # Lightning's, at Ctrl-C
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from stop
        raise
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        if not checkpoint.exists() or zipfile.is_zipfile(checkpoint):
            raise
        raise ModelError(f"{checkpoint.name} is damaged. Remove it to train from the start.") from error
    if trainer.is_global_zero:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        done = {"epochs": trainer.current_epoch, "precision": trainer.precision, "metrics": metrics}
        write_json(done, checkpoint.with_name("done.json"))


def _is_first_process() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0"


@contextmanager
def _only_process(run_dir: Path) -> Iterator[None]:
    """Hold the run folder, so that two processes do not write one checkpoint; the system lets go when we die."""
    if not _is_first_process():  # it is of the run that holds it
        yield
        return
    with (run_dir / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                f"Another process is training in {run_dir.name}. Wait for it, or choose another folder."
            ) from error
        yield


def _trainer(config: TrainingConfig, run_dir: Path, devices: int, accelerator: str) -> lightning.Trainer:
    """The trainer of a run.

    Raises
    ------
    UsageError : if there is no such accelerator here, or not as many devices.
    """
    callbacks: list[Callback] = [
        ModelCheckpoint(
            run_dir, filename="last", save_top_k=1, enable_version_counter=False, save_on_train_epoch_end=True
        ),
        RichProgressBar(),
    ]
    if config.weight_averaging:  # a checkpoint's model is the average; the weights in training lie beside it
        callbacks.append(EMAWeightAveraging(decay=config.weight_averaging))
    try:
        return lightning.Trainer(
            default_root_dir=run_dir,
            accelerator=accelerator,
            devices=devices,
            strategy="ddp" if devices > 1 else "auto",
            max_epochs=config.epochs,
            precision=usable_precision(config.precision, accelerator),
            check_val_every_n_epoch=config.tuning_every_epochs,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # PatchSampler shares the patches out itself
            logger=TensorBoardLogger(run_dir, name="", version="lightning_logs"),
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO()],
            log_every_n_steps=1,
            enable_model_summary=False,
        )
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        raise UsageError(f"Training cannot start on {devices} x {accelerator}: {error}") from error


def usable_precision(precision: str, accelerator: str) -> Any:
    """`precision`, or "32-true" where it is "bf16-mixed" and the CPU would emulate it."""
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available())
    emulated = on_cpu and not torch.cpu.get_capabilities().get("avx512_bf16", False)
    return "32-true" if precision == "bf16-mixed" and emulated else precision


def fastest_memory_format(precision: str, device: str) -> torch.memory_format:
    """Channels last, but for bf16 on a CPU: a step there takes a quarter less time channels first, and in f32 more."""
    return torch.contiguous_format if (precision, device) == ("bf16-mixed", "cpu") else torch.channels_last_3d


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it when it is whole.

    The checkpoint replaces the only one there is. Lightning's own writing goes through the system's temporary folder,
    and a move from another file system is a copy, which a kill cuts short.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        with whole_file(Path(path)) as temporary:
            super().save_checkpoint(checkpoint, temporary, storage_options)
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())


def load_module(checkpoint: Path, accelerator: str = "cpu") -> SegmentationModule:
    """The trained module of a checkpoint, ready to predict: on the CPU, or on the GPU if "auto" finds one.

    Raises
    ------
    ModelError : if the file does not exist, is not a PETSeg checkpoint, or is of a version with other settings.
    UsageError : if it is to be on a GPU and there is none.
    """
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise UsageError("There is no GPU here. Pass --accelerator cpu.")
    if not checkpoint.is_file():
        raise ModelError(f"{checkpoint.name} does not exist. Pass the last.ckpt of petseg-train fit.")
    device = "cuda" if accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available()) else "cpu"
    try:
        module = SegmentationModule.load_from_checkpoint(checkpoint, map_location=device, weights_only=True)
    except UsageError as error:
        raise ModelError(f"{checkpoint.name} is of another version. {error} Use it with that version.") from error
    except Exception as error:  # torch raises many kinds on a foreign file
        raise ModelError(
            f"{checkpoint.name} is not a checkpoint of petseg-train fit, or damaged. Pass its last.ckpt."
        ) from error
    return module.eval()


def _claim_run_dir(run_dir: Path, settings: dict[str, Any]) -> None:
    """Write the settings of a new run, or check that an old run had the same; without a checkpoint there was none."""
    if not (run_dir / "last.ckpt").exists():
        (run_dir / "run.json").unlink(missing_ok=True)
    claim(run_dir / "run.json", settings, f"{run_dir.name} holds a run with other settings or cases.")


@cache  # what the process started from, whatever happens to the checkout during the training
def _commit() -> str:
    """The commit of this checkout, with "+changes" where it has uncommitted ones; "unknown" where it is none."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return "unknown"

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
