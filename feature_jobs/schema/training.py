"""The sections of a scenario about the network and its training.

A text below a key is its sentence in docs/reference.md; a test requires one for each key.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from feature_jobs.schema.base import LayerWidth, Name, Number, NumRows, PathText, Positive, Section, Whole


class Model(Section):
    """The network."""

    architecture: Literal["shared_bottom", "mmoe", "deepfm", "dcnv2", "dlrm"] = "shared_bottom"
    """The network's kind."""
    embedding_dim: Annotated[Positive, Field(le=4_096)] = 16
    """The number of weights in each row of an embedding table."""
    bottom: Annotated[tuple[LayerWidth, ...], Field(min_length=1, max_length=50)] = (128, 64)
    """The widths of the shared layers (`mmoe`: of each expert's layers; `dlrm`: of those that read the numbers)."""
    tower: Annotated[tuple[LayerWidth, ...], Field(max_length=50)] = (32,)
    """The widths of each task's own layers (`dlrm`: of those above the products); may be empty."""
    num_experts: Annotated[Positive, Field(le=256)] = 4
    """The number of experts of `mmoe`."""
    cross: Literal["stacked", "parallel"] = "stacked"
    """The place of the crosses of `dcnv2`: stacked, the layers read them; parallel, the layers are beside them."""
    cross_layers: Annotated[Positive, Field(le=100)] = 3
    """The number of crosses of `dcnv2`."""
    cross_rank: LayerWidth | None = None
    """The rank of the crosses' matrices, which makes them smaller; without one they are whole."""
    dropout: Annotated[Number, Field(ge=0, lt=1)] = 0.0  # with 1 nothing would be learned
    """The share of a layer's outputs that training sets to zero, by chance."""


Sharding = Literal["table_wise", "row_wise", "column_wise", "data_parallel"]


class Distributed(Section):
    """Sharding of the tables by TorchRec over `ranks` processes, if `train.backend` is `torchrec`.

    torchrun's variables PET_NNODES, PET_NODE_RANK, PET_MASTER_ADDR and PET_MASTER_PORT give each machine its rank;
    where they are not set, it is the only machine.
    """

    ranks: Annotated[Positive, Field(le=1_024)] = 2
    """The number of processes on all machines together; each machine starts an equal share."""
    kind: Sharding = "row_wise"
    """The sharding of every table that `plan` does not name."""
    plan: dict[str, Sharding] = {}
    """The sharding of single tables, by name."""
    planner: bool = False
    """Lets TorchRec decide between table-wise and row-wise."""
    capacity: dict[str, NumRows] = {}
    """The rows that a table can hold, by name; their memory is taken at once. A table that evicts needs more than its
    `embedding.capacity`: by as many as two batches have ids."""
    default_capacity: NumRows = 1_000_000
    """The rows that each other table can hold."""
    communication: Literal["fp32", "fp16", "bf16"] = "fp32"
    """The format in which embeddings and their gradients are sent; between CPUs bf16 is sent as fp16."""
    dense_communication: Literal["fp32", "fp16", "int8", "top_k"] = "fp32"
    """The compression of the dense part's gradient: rounded, or only its largest values (top_k); a step adds what was
    left out to the next."""
    top_k_share: Annotated[Number, Field(gt=0, le=1)] = 0.01
    """The share of the gradient's values that top_k sends."""
    hierarchical: bool = False
    """Sends in full precision within a machine, and compresses only between machines."""
    timeout_s: Annotated[Positive, Field(le=604_800)] = 300  # a week
    """Seconds that a process or machine waits for another."""


class Train(Section):
    """One pass over the day, from the parent. Steps whose gradient is not finite are skipped, and counted.

    `backend: torchrec` shards the tables over processes, see `distributed`; each computes its share of a batch in one
    piece, on the CPU; `device` is then that of the tables. It knows no `clip_norm`, no `cache_rows` and no `adam`.
    """

    learning_rate: Annotated[Number, Field(gt=0, le=1_000)] = 0.001
    """The rate of AdamW, which learns all weights but the embeddings."""
    embedding_optimizer: Literal["rowwise_adagrad", "adagrad", "adam", "sgd"] = "rowwise_adagrad"
    """The optimizer of the embeddings."""
    embedding_learning_rate: Annotated[Number, Field(gt=0, le=1_000)] = 0.05
    """The rate of the embeddings' optimizer."""
    embedding_epsilon: Annotated[Number, Field(gt=0, le=1)] = 1e-8
    """A small number in the optimizer's denominator, so that it does not divide by zero."""
    weight_decay: Annotated[Number, Field(ge=0, le=1_000)] = 0.0
    """The weight decay of AdamW."""
    warmup_steps: Annotated[Whole, Field(ge=0, le=1_000_000_000)] = 0
    """The first steps of the chain, over which both rates rise from 0."""
    clip_norm: Annotated[Number, Field(gt=0, le=1e9)] | None = None
    """The largest norm of the dense gradient, and of each embedding row's; longer ones are shortened to it."""
    # float32 by default: without its own instructions for bfloat16 a processor needs 3-4 times as long for it.
    precision: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    """The precision of the dense part's products; weights stay float32, and float16 scales the loss dynamically. auto
    takes the faster of bfloat16 and float32 on the machine that trains the day, so digests depend on that machine."""
    batch_size: Annotated[Positive, Field(le=10_000_000)] = 512
    """The rows that each step learns."""
    micro_batch: Annotated[Positive, Field(le=10_000_000)] = 2048
    """The rows that are computed at once; the gradients of a step's micro-batches are added."""
    # Between 0, where nothing would judge the challenger, and 1, where it would have learned nothing of the day.
    holdout_share: Annotated[Number, Field(gt=0, lt=1)] = 0.2
    """The share of the day's rows, the last by event time, that are scored before they are learned; they judge the
    challenger."""
    task_weights: dict[str, Annotated[Number, Field(ge=0, le=1e9)]] = {}
    """The weight of a label's loss, by label; others have 1."""
    value_weights: tuple[Name, ...] = ()
    """Labels of another log whose positive rows count in the loss as often as their `value` says; those with a value of
    0 or less are not learned. The odds of a score then estimate the value of a row (Covington et al. 2016, "Deep Neural
    Networks for YouTube Recommendations"), so that its mean is not the rate of the label, and calibration is far from
    1."""
    shuffle_rows: NumRows = 1_000_000
    """The rows that are shuffled together: a block of this size is in memory."""
    snapshot_rows: NumRows = 10_000_000
    """The rows between two snapshots of a day's training; a killed one goes on from the last."""
    seed: Annotated[Whole, Field(ge=0, le=100_000_000)] = 7
    """The seed of everything random in a training; equal seeds and inputs give equal bytes."""
    threads: Annotated[Positive, Field(le=1_024)] = 2
    """The threads that share the micro-batches; their number changes no bit of the result."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """The device of the dense part; auto takes a GPU if there is one."""
    cache_rows: NumRows | None = None
    """The embedding rows that are held beside the computation, in memory or on the GPU; the others are in
    `rows_folder`. Without a number: all in memory, or as many as fit on the GPU. A cache changes no bit."""
    rows_folder: PathText | None = None
    """The folder of the file of embedding rows; without one: beside the checkpoint, with a GPU in host memory."""
    backend: Literal["native", "torchrec"] = "native"
    """The implementation of the embedding tables: ours in one process, or TorchRec's over several."""
    distributed: Distributed = Distributed()
    """The settings of the torchrec backend."""
