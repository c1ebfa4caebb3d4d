"""Rows sharded over processes by TorchRec (Ivchenko et al., RecSys 2022), updated by FBGEMM's fused optimizers.

Every process looks up the whole batch: id maps, admission and eviction are replicated, so that they need no messages.
Weights, state and the work on them are sharded: a process requests the pooled embeddings of its share of the batch and
returns their gradient.

TorchRec's tables have a fixed size, so each row gets a slot of its table. Slots of evicted rows are reused.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from feature_jobs.errors import BadInputError, mistake
from feature_jobs.imports import quick_imports
from feature_jobs.schema import Distributed, Train
from feature_jobs.schema.sharding_rules import NOT_SHARDED, sharding_problems
from models.distributed.process_group import Group
from models.sparse.device import as_tensor, moves
from models.sparse.id_map import Ints, Rows
from models.sparse.id_map_kernels import NUM_FREE
from models.sparse.lookup import Lookup
from models.sparse.memory import reserve
from models.sparse.optimizers import Optimizer
from models.sparse.rows import Floats, Step, initial
from models.sparse.tables import RESERVED_ROWS, DynamicTables

EXTRA = "pip install 'recloop[distributed]'"


class Slots:
    """The slots 1 … capacity of a table; slot 0 is the default row's. With `parts`, slots are taken from that many
    equal ranges in turn, so that row-wise shards fill evenly."""

    def __init__(self, capacity: int, parts: int = 1) -> None:
        self.parts, self.part_size = parts, -(-(capacity + 1) // parts)
        self.num_given, self._returned = 1, np.empty(0, np.int64)

    @property
    def size(self) -> int:
        """The number of slots, with the default row's; a multiple of `parts`."""
        return self.parts * self.part_size

    @property
    def num_free(self) -> int:
        """The number of free slots."""
        return self.size - self.num_given + len(self._returned)

    def give(self, number: int) -> Ints:
        """Takes free slots, the last returned first."""
        cut = max(len(self._returned) - number, 0)
        again, self._returned = self._returned[cut:][::-1], self._returned[:cut]
        fresh = np.arange(self.num_given, self.num_given + number - len(again))
        self.num_given += len(fresh)
        return np.concatenate([again, fresh % self.parts * self.part_size + fresh // self.parts])

    def take_back(self, slots: Ints) -> None:
        """Frees slots."""
        self._returned = np.concatenate([self._returned, slots])


@dataclass(frozen=True)
class Shard:
    """This process's part of a table: rows from `begin` on, and some columns of weights and of state. A `replica` is
    the whole table, which every process has."""

    begin: int
    columns: slice
    weight: Tensor
    state_columns: slice
    state: Tensor | None
    replica: bool = False


class ShardedRows:
    """A storage (see `rows.Storage`). All processes must call `forward`, `update` and `read` in the same order; other
    methods send no messages.

    `names`: the tables; `table_F`: the table of each feature; `device`: that of this process's shards.

    Raises BadInputError for settings that TorchRec does not support, or if it is not installed.
    """

    def __init__(
        self,
        dim: int,
        train: Train,
        names: Sequence[str],
        table_F: Sequence[int],
        group: Group,
        *,
        device: torch.device,
    ) -> None:
        _check(dim, train, names)
        self.dim, self.optimizer = dim, Optimizer(train.embedding_optimizer, train.embedding_epsilon)
        self.names, self.table_F, self.group, self.device = list(names), list(table_F), group, device
        self.fetched_M: Rows | None = None
        self.slot_R: Rows = reserve((RESERVED_ROWS,), np.int32)  # 0: the default row's slot, or no slot
        self.holder_R: npt.NDArray[np.int16] = reserve((RESERVED_ROWS,), np.int16)  # the table that the slot belongs to
        # The first rows are the tables' default rows, in the order of the tables.
        self.holder_R[: len(names)] = np.arange(len(names))
        self._tables: DynamicTables  # set by `bind`
        settings = train.distributed
        kinds = [settings.plan.get(name, settings.kind) for name in names]
        self.slots = [
            Slots(settings.capacity.get(name, settings.default_capacity), group.size if kind == "row_wise" else 1)
            for name, kind in zip(names, kinds, strict=True)
        ]
        self._rate = train.embedding_learning_rate
        self._replicas: dict[int, Tensor] = {}
        self.collection = self._shard(settings, kinds)
        self.shards = [self._local_shards(table) for table in range(len(names))]
        self._pooled: tuple[slice, Tensor] | None = None
        self.write(np.arange(len(names), dtype=np.int32), *self._zeros(len(names)))

    def bind(self, tables: DynamicTables) -> None:
        """Sets the tables, which know the table of each row and the free rows. They are created after this storage."""
        self._tables = tables

    def reset(self, rows_F: Rows, keys_F: Ints) -> None:
        """Gives each row a slot of its table, initial weights and state 0.

        Raises BadInputError if a table is full.
        """
        self._take_back(rows_F)
        # Row and slot are two numbers: a table has its own slots, a row number is shared by all tables.
        table_F = self._tables.table_R[rows_F]
        for table in map(int, np.unique(table_F)):
            rows, slots = rows_F[table_F == table], self.slots[table]
            if slots.num_free < len(rows):  # also take the slots of evicted rows
                ids = self._tables.ids
                self._take_back(ids.free_rows[: ids.counters[NUM_FREE]])
            if slots.num_free < len(rows):
                raise BadInputError(
                    f"train.distributed: table {self.names[table]} is full at {slots.size - 1:,} rows; raise"
                    f" train.distributed.capacity.{self.names[table]}, or lower its embedding.capacity"
                )
            self.slot_R[rows], self.holder_R[rows] = slots.give(len(rows)), table
        self.write(rows_F, *initial(self.dim, self.optimizer, keys_F))

    def locate(self, rows_U: Rows) -> Rows:
        """The slot of each row, in the row's table."""
        return self.slot_R[rows_U]

    def find(self, rows_N: Rows) -> tuple[Rows, Floats | None]:
        """The slot of each row, in the row's table."""
        return self.slot_R[rows_N], None

    def forward(self, batch: Lookup, begin: int, end: int, input_BI: npt.NDArray[Any]) -> None:
        """See `DynamicTables.forward`. [begin, end) must be this process's share. If autograd is on, its graph is kept
        for `update`."""
        emb_BE = self._pool(batch, begin, end)
        as_tensor(input_BI)[:, : emb_BE.shape[1]] = emb_BE.detach()
        self._pooled = (slice(begin, end), emb_BE) if emb_BE.requires_grad else None

    def update(self, batch: Lookup, gradient_BI: npt.NDArray[Any], step: Step, part: int, parts: int) -> None:
        """See `DynamicTables.update`. The first part updates everything for this process's share of the batch."""
        if part or self._pooled is None:
            return
        (share, emb_BE), self._pooled = self._pooled, None
        if step.rate != self._rate:  # in warm-up: FBGEMM uses the rate that was set at the forward pass
            for options in self.collection.fused_optimizer.param_groups:
                options["lr"] = step.rate
            self.collection.fused_optimizer.step()  # makes no step, only passes the rate on
            self._rate, emb_BE = step.rate, self._pool(batch, share.start, share.stop)
        gradient_BE = as_tensor(gradient_BI[share])[:, : emb_BE.shape[1]].float() * step.unscale
        emb_BE.backward(gradient_BE.to(self.device))
        for table, parameter in self._replicas.items():
            self._update_replica(table, parameter, batch, step)

    def read(self, rows_N: Rows) -> tuple[Floats, Floats]:
        """Weights [N, D] and state [N, K], gathered from all processes. A collective call."""
        weight_ND, state_NK = self._zeros(len(rows_N))
        for places, shard, index in self._parts(rows_N):
            # Parts are summed over processes below: a replica counted by each would be a multiple of itself.
            if not shard.replica or self.group.is_leader:
                weight_ND[places, shard.columns] = shard.weight[index].cpu().numpy()
                if shard.state is not None:
                    state_NK[places, shard.state_columns] = shard.state[index].cpu().numpy()
        for array in (weight_ND, state_NK):
            self.group.all_reduce(torch.from_numpy(array))
        return weight_ND, state_NK

    def write(self, rows_N: Rows, weight_ND: Floats, state_NK: Floats) -> None:
        """Overwrites weights and state of those rows that this process holds."""
        for places, shard, index in self._parts(rows_N):
            shard.weight[index] = torch.from_numpy(weight_ND[places, shard.columns]).to(self.device)
            if shard.state is not None:
                shard.state[index] = torch.from_numpy(state_NK[places, shard.state_columns]).to(self.device)

    def _pool(self, batch: Lookup, begin: int, end: int) -> Tensor:
        if any(len(share_V) for *_, share_V in batch.bags):
            raise BadInputError(f"train.backend: torchrec: {NOT_SHARDED}; set native")
        pooled = self.collection(self._jagged(batch, begin, end)).wait()
        emb_BE: Tensor = torch.cat([pooled[f"f{f}"] for f in range(len(self.table_F))], 1)[: end - begin]
        if not len(batch.scale_S):
            return emb_BE
        scale_BF = torch.from_numpy(batch.scale_S.reshape(-1, len(self.table_F))[begin:end]).to(self.device)
        emb_BFD: Tensor = emb_BE.unflatten(1, (-1, self.dim))
        return (emb_BFD * scale_BF.unsqueeze(2)).flatten(1)

    def _zeros(self, num_rows: int) -> tuple[Floats, Floats]:
        width = self.optimizer.state_width(self.dim)
        return np.zeros((num_rows, self.dim), np.float32), np.zeros((num_rows, width), np.float32)

    def _take_back(self, rows_N: Rows) -> None:
        rows = rows_N[self.slot_R[rows_N] > 0]
        for table in np.unique(self.holder_R[rows]):
            self.slots[table].take_back(self.slot_R[rows[self.holder_R[rows] == table]])
        self.slot_R[rows] = 0

    def _parts(self, rows_N: Rows) -> Iterator[tuple[Ints, Shard, Tensor]]:
        """The rows that this process holds: their indices in `rows_N`, the shard, and their indices in the shard."""
        holder_N, slot_N = self.holder_R[rows_N], self.slot_R[rows_N]
        for table in np.unique(holder_N):
            for shard in self.shards[table]:
                index_N = slot_N - shard.begin
                places = np.flatnonzero((holder_N == table) & (index_N >= 0) & (index_N < len(shard.weight)))
                if len(places):
                    yield places, shard, torch.from_numpy(index_N[places]).long().to(self.device)

    def _jagged(self, batch: Lookup, begin: int, end: int) -> Any:
        """The slots of samples [begin, end), feature by feature.

        TorchRec needs batches of equal size in all processes: a share that is one sample shorter gets a sample without
        ids.
        """
        from torchrec import KeyedJaggedTensor

        num_samples, num_slots = batch.places_BS.shape
        # The same in all processes, without asking them: each share differs from it by one sample at most.
        longest = -(-num_samples // self.group.size)
        lengths_FB = np.zeros((len(self.table_F), longest), np.int64)
        lengths_FB[:num_slots, : end - begin] = 1
        values = [np.ascontiguousarray(batch.places_BS[begin:end].T).reshape(-1)]
        for i, (places_V, offsets, *_) in enumerate(batch.bags):
            lengths_FB[num_slots + i, : end - begin] = np.diff(offsets[begin : end + 1])
            values.append(places_V[offsets[begin] : offsets[end]])
        return KeyedJaggedTensor(
            keys=[f"f{f}" for f in range(len(self.table_F))],
            values=torch.from_numpy(np.concatenate(values)).long().to(self.device),
            lengths=torch.from_numpy(lengths_FB.reshape(-1)).to(self.device),
        )

    def _update_replica(self, table: int, parameter: Tensor, batch: Lookup, step: Step) -> None:
        """Updates a data-parallel table, which TorchRec does not. Its gradients are means over processes."""
        gradient_RD = cast(Tensor, parameter.grad)
        slots = batch.places_U[self._tables.table_R[batch.rows_U] == table]
        index = torch.from_numpy(slots).long().to(self.device)
        gradient_UD = gradient_RD[index] * self.group.size
        # Only the rows of this batch: zeroing a whole table each step would cost more than the update.
        gradient_RD[index] = 0
        (shard,) = self.shards[table]
        state_RK = cast(Tensor, shard.state)  # a replica always has one; for sgd it has no columns
        moved_UD, state_RK[index] = moves(self.optimizer, gradient_UD, state_RK[index], step)
        shard.weight[index] -= moved_UD

    def _shard(self, settings: Distributed, kinds: Sequence[str]) -> Any:
        """The sharded collection: table `t0` for each table, feature `f0` for each feature."""
        from fbgemm_gpu.split_embedding_configs import EmbOptimType
        from torch import distributed

        with quick_imports():
            from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, PoolingType
            from torchrec.distributed.comm_ops import set_gradient_division
            from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
            from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry
            from torchrec.distributed.types import ShardingEnv

        set_gradient_division(False)  # the loss is of the whole batch, so gradients of shares are summed
        tables = [
            EmbeddingBagConfig(
                name=f"t{table}",
                num_embeddings=slots.size,
                embedding_dim=self.dim,
                feature_names=[f"f{f}" for f, of in enumerate(self.table_F) if of == table],
                pooling=PoolingType.SUM,
                init_fn=lambda weight: weight,  # rows are initialised when they are given out
            )
            for table, slots in enumerate(self.slots)
        ]
        communication = CommType(settings.communication)
        sharder = EmbeddingBagCollectionSharder(
            fused_params={
                "optimizer": EmbOptimType[f"EXACT_{self.optimizer.name.upper()}"],
                "learning_rate": self._rate,
                "eps": self.optimizer.epsilon,
            },
            qcomm_codecs_registry=get_qcomm_codecs_registry(
                QCommsConfig(forward_precision=communication, backward_precision=communication), device=self.device
            ),
        )
        # meta: without memory, because each process allocates only its own shards.
        collection = EmbeddingBagCollection(tables, device=torch.device("meta"))
        plan = self._planned(collection, sharder) if settings.planner else self._plan(collection, sharder, kinds)
        self._kinds = [plan[f"t{table}"].sharding_type for table in range(len(tables))]
        env = ShardingEnv.from_process_group(distributed.group.WORLD)
        with torch.random.fork_rng(devices=[]):  # so that the network's initial weights do not depend on this
            return sharder.shard(collection, plan, env=env, device=self.device)

    def _plan(self, collection: Any, sharder: Any, kinds: Sequence[str]) -> Any:
        from torchrec.distributed import sharding_plan as plans

        size = self.group.size
        rows_P = [0] * size
        wanted = {}
        for table in sorted(range(len(kinds)), key=lambda t: -self.slots[t].size):
            if kinds[table] == "table_wise":  # the largest first, each to the process with the fewest rows
                rank = rows_P.index(min(rows_P))
                rows_P[rank] += self.slots[table].size
                wanted[f"t{table}"] = plans.table_wise(rank, compute_kernel="fused")
            elif kinds[table] == "row_wise":
                wanted[f"t{table}"] = plans.row_wise(compute_kernel="fused")
            elif kinds[table] == "column_wise":
                wanted[f"t{table}"] = plans.column_wise(list(range(size)), compute_kernel="fused")
            else:
                wanted[f"t{table}"] = plans.data_parallel()
        return plans.construct_module_sharding_plan(
            collection, wanted, sharder, self.group.node_size, size, self.device.type
        )

    def _planned(self, collection: Any, sharder: Any) -> Any:
        """TorchRec's own plan, among the kinds that do not split a row. On CPUs it never shards by rows."""
        from torch import distributed
        from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology

        size, kinds = self.group.size, ["table_wise", "row_wise"]
        planner = EmbeddingShardingPlanner(
            topology=Topology(world_size=size, compute_device=self.device.type, local_world_size=self.group.node_size),
            constraints={
                f"t{table}": ParameterConstraints(sharding_types=kinds, compute_kernels=["fused"])
                for table in range(len(self.names))
            },
        )
        return planner.collective_plan(collection, [sharder], distributed.group.WORLD).get_plan_for_module("")

    def _local_shards(self, table: int) -> list[Shard]:
        name = f"embedding_bags.t{table}.weight"
        weight = self.collection.state_dict()[name]
        rowwise = self.optimizer.name == "rowwise_adagrad"
        if self._kinds[table] == "data_parallel":
            columns = slice(0, self.optimizer.state_width(self.dim))
            state = torch.zeros(len(weight), columns.stop, device=self.device)
            self._replicas[table] = dict(self.collection.named_parameters())[name]
            return [Shard(0, slice(0, self.dim), weight.data, columns, state, replica=True)]
        states = self.collection.fused_optimizer.state_dict()["state"].get(name, {})
        state = states.get(f"t{table}.momentum1")
        shards = []
        for number, part in enumerate(weight.local_shards()):
            (row, column), (_, width) = part.metadata.shard_offsets, part.metadata.shard_sizes
            columns = slice(column, column + width)
            moments = state.local_shards()[number].tensor.data if state is not None else None
            if rowwise and moments is not None:
                moments = moments.unsqueeze(1)
            shards.append(Shard(row, columns, part.tensor.data, slice(0, 1) if rowwise else columns, moments))
        return shards


def _check(dim: int, train: Train, names: Sequence[str]) -> None:
    """Raises BadInputError for settings that cannot be sharded, or if TorchRec is not installed."""
    problems = [mistake(*found) for found in sharding_problems(train, dim, names)]
    if problems:
        raise BadInputError("\n".join(problems))
    try:
        for name in ("fbgemm_gpu", "torchrec"):
            importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise BadInputError(
            f"train.backend: 'torchrec': not installed here ({error}); {EXTRA}, or set native"
        ) from None
