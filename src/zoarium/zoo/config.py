"""The configuration of one model: which net, on which data, trained how, from which seed."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from zoarium._core.digest import settings_hash


class Training(BaseModel):
    """How a model is trained. Every number may differ from model to model within one stacked program."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(default=30, ge=0, description="passes over the training data (fixed-epochs mode)")
    steps: int | None = Field(default=None, ge=0, description="optimiser steps instead of epochs (equal-steps mode)")
    batch_size: int = Field(default=64, ge=1, description="samples a step; a larger batch is colder")
    optimizer: Literal["sgd", "adam", "adamw"] = Field(default="sgd", description="sgd, adam (L2) or adamw (decoupled)")
    lr: float = Field(default=0.05, ge=0, allow_inf_nan=False, description="peak learning rate")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="SGD momentum")
    nesterov: bool = Field(default=False, description="Nesterov momentum for SGD")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="Adam's decay of the mean")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="Adam's decay of the variance")
    eps: float = Field(default=1e-8, gt=0, description="Adam's denominator offset")
    weight_decay: float = Field(default=5e-4, ge=0, allow_inf_nan=False, description="weight decay, on every parameter")
    clip_norm: float | None = Field(default=5.0, gt=0, description="largest gradient norm; null for none")
    schedule: Literal["constant", "cosine", "one_cycle", "step"] = Field(
        default="one_cycle", description="lr over steps"
    )
    warmup: float = Field(default=0.3, ge=0, le=1, description="one_cycle: share of the steps spent rising")
    step_milestones: tuple[float, ...] = Field(default=(0.5, 0.75), description="step: where lr falls, as shares")
    step_factor: float = Field(default=0.1, gt=0, description="step: what lr is multiplied by there")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="share of the target spread over all classes")
    drop_last: bool = Field(default=False, description="leave out an incomplete last batch of an epoch")
    augment: Literal["none", "flip", "crop_flip", "crop_flip_rotate"] = Field(
        default="none", description="images: mirror, shift by up to an eighth, rotate by up to 20 degrees"
    )
    micro_batch: int | None = Field(
        default=None, ge=1, description="batch norm sees so many samples of a batch at a time; a divisor of batch_size"
    )

    @model_validator(mode="after")
    def _micro_batches_fill_a_batch(self) -> Training:
        if self.micro_batch and self.batch_size % self.micro_batch:
            raise ValueError(f"micro_batch {self.micro_batch} does not divide batch_size {self.batch_size}")
        return self


# Fields that came later are left out of a model's id at these values, so that the ids of older zoos stay.
LATER = {"augment": "none", "micro_batch": None}


class ModelConfig(BaseModel):
    """One point of a grid; its id is a digest of it, so equal configurations are one model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    net: str
    net_params: dict[str, Any] = Field(default_factory=dict)
    data: str = "digits"
    data_fraction: float = Field(default=1.0, gt=0, le=1, description="share of the training data used")
    label_noise: float = Field(default=0.0, ge=0, le=1, description="share of training labels made wrong")
    data_params: dict[str, Any] = Field(
        default_factory=dict, description="parameters of the data that are axes; `data` names them too"
    )
    data_seed: int = Field(default=0, description="draws the fraction and the noise")
    seed: int = Field(default=0, description="draws initial weights and data order")
    training: Training = Field(default_factory=Training)

    @model_validator(mode="after")
    def _names_are_distinct(self) -> ModelConfig:
        taken = set(Training.model_fields) | set(ModelConfig.model_fields)
        if clash := set(self.net_params) & taken:
            raise ValueError(f"net {self.net!r} has a parameter named like an axis of training: {sorted(clash)}")
        if clash := set(self.data_params) & (taken | set(self.net_params)):
            raise ValueError(f"data {self.data!r} has a parameter named like another axis: {sorted(clash)}")
        return self

    @cached_property
    def id(self) -> str:
        """Name of the net and a digest of everything that decides the trained weights."""
        facts = self.model_dump(mode="json", exclude={"data_params"})
        for name, default in LATER.items():
            if facts["training"][name] == default:
                del facts["training"][name]
        return f"{self.net}-{settings_hash(facts, 10)}"

    def columns(self) -> dict[str, Any]:
        """The configuration as one flat row of a table."""
        top = self.model_dump(exclude={"net_params", "training", "data_params"})
        return {**top, **self.data_params, **self.net_params, **self.training.model_dump()}
