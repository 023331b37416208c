"""The optimisation and its lay-out over workers: the section ``train`` of the configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.section import Section


class TrainConfig(Section):
    """The optimisation and its lay-out over workers."""

    workers: int | None = Field(
        None, ge=1, description="DDP workers; null: one per GPU; without GPUs one per 8 cores (lstm: 2 per node)."
    )
    min_workers: int | None = Field(
        None,
        ge=1,
        description="Go on with as few as these where nodes are lost, with more when they are back; null: all or none.",
    )
    cpus_per_worker: int | None = Field(
        None,
        ge=1,
        description="CPU cores (and torch threads) of one worker; null: as many as fit, 8 at most; for lstm, beside a "
        "GPU and in trials of a search 1.",
    )
    gpus_per_worker: float | None = Field(
        None, ge=0, description="GPUs of one worker; null: 1 where the cluster has GPUs, else 0."
    )
    epochs: float = Field(2.0, gt=0, le=1000, description="Passes over the training rows.")
    max_rows: int | None = Field(
        None, ge=8, description="Train on at most this many rows (a fixed, stratified sample)."
    )
    batch_tokens: int = Field(
        2048, ge=64, description="Tokens (padding included) of one optimiser step over all workers."
    )
    learning_rate: float | None = Field(None, gt=0, description="Peak rate; null: 1e-4 for pretrained, 3e-3 for lstm.")
    weight_decay: float = Field(0.01, ge=0, description="AdamW decay of matrices (not of biases and norms).")
    warmup: float = Field(
        0.06, ge=0, lt=1, description="Share of the steps with a rising rate; it falls linearly to 0 after."
    )
    ema_decay: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Decay per step of the moving average of weights that is evaluated and kept; 0: the weights "
        "themselves; null: 0.999 for lstm, else 0.",
    )
    adversarial: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Learn each batch once more with token vectors changed against the loss by this share of their "
        "length (twice the time); 0: do not; null: 0.05 for lstm, else 0.",
    )
    clip_norm: float = Field(1.0, gt=0, description="Gradient norm above which gradients are scaled down.")
    freeze_embeddings: bool = Field(
        False, description="Leave the token embeddings as they are: faster steps, a little less accuracy."
    )
    freeze_layers: int = Field(
        0, ge=0, description="Leave the embeddings and this many of the lowest layers as they are."
    )
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Rate of a layer as a share of the rate of the layer above it (0.9 is usual; 1: all alike).",
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of each target that is spread over all labels.")
    class_weights: Literal["none", "balanced"] | dict[str, float] = Field(
        "none",
        description="What a row counts in the loss: 'none', 'balanced' (rare classes more), or a number per label.",
    )
    teacher: str | None = Field(
        None,
        description="A trained run or checkpoint with the same labels, usually a larger model, whose answers to the "
        "training rows are learnt, too (distillation); null: none.",
    )
    teacher_weight: float = Field(
        0.5, ge=0, le=1, description="Share of the loss that is about the teacher's answers; the labels have the rest."
    )
    teacher_temperature: float = Field(
        2.0, ge=0.1, le=100, description="By which the teacher's and the model's answers are softened to be compared."
    )
    micro_batch_tokens: int | None = Field(
        None,
        ge=16,
        description="Tokens of one forward pass of a worker; a larger share of a step is done in pieces (less memory).",
    )
    gradient_checkpointing: bool = Field(
        False, description="Compute activations again in the backward pass: less memory, a third more work."
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="'auto': bf16 where the processor computes in it."
    )
    evaluations: int = Field(4, ge=1, description="Evaluations in the whole training, evenly spaced.")
    evaluate_at: tuple[float, ...] | None = Field(
        None, description="Shares of the training after which to evaluate, for example [0.1, 0.3, 1]; null: evenly."
    )
    checkpoint_seconds: float = Field(
        60.0,
        ge=0,
        description="Seconds between checkpoints (there is one at each evaluation, too); further apart where "
        "copying the weights would take over 1% of the time.",
    )
    keep_checkpoints: int = Field(
        2, ge=1, description="Latest checkpoints kept while training, besides the best: one may be damaged."
    )
    validation_rows: int | None = Field(
        2_000,
        ge=8,
        description="Validation rows (a fixed, stratified sample) used while training; null: all.",
    )
    track: tuple[Literal["tensorboard", "mlflow"], ...] = Field(
        (),
        description="Where the curves go besides metrics.jsonl: 'tensorboard', 'mlflow' (extra broadsheet[mlflow]).",
    )
    max_failures: int = Field(
        3,
        ge=0,
        description="Worker crashes in a row, without a new checkpoint in between, that are survived by resuming.",
    )

    @model_validator(mode="after")
    def _shares(self) -> TrainConfig:
        if self.evaluate_at is not None and not all(0 < share <= 1 for share in self.evaluate_at):
            raise ValueError("evaluate_at: shares lie above 0 and up to 1")
        return self
