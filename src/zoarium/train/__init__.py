"""The population trainer: many models as few stacked programs, each with the semantics of a plain PyTorch loop."""

from zoarium.train.architecture import data_key
from zoarium.train.plain import train_one_plainly
from zoarium.train.plan import Program, plan
from zoarium.train.trainer import (
    Checkpoint,
    EpochReport,
    Interrupted,
    Part,
    Trained,
    checkpoint_epochs,
    train_program,
)
from zoarium.train.tune import fine_tune

__all__ = [
    "Checkpoint", "EpochReport", "Interrupted", "Part", "Program", "Trained", "checkpoint_epochs", "data_key",
    "fine_tune", "plan", "train_one_plainly", "train_program",
]  # fmt: skip
