"""Writes a ranker's dense part as an ONNX graph, in fp32 or int8.

Weights are int8 per output channel. Activations are uint8 with a constant range per tensor, from histograms over
calibration rows. The inputs of the first layer differ in range by orders of magnitude, so each column is divided by the
root of its range and its weights are multiplied by it (Xiao et al., SmoothQuant, ICML 2023, with α = 1/2). A shift of
the logits corrects the remaining bias.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import torch
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from torch import Tensor, nn

from feature_jobs.transforms import Encoded, Floats, encode
from models.architectures.layers import BlockLinear
from models.ranking.networks import Standardize, standardize
from models.ranking.ranker import Ranker
from models.runtime.onnx_model import PAIRS, Feeds, OnnxModel

OPSET = 17
CALIBRATION_BATCH = 256


class _Standardize(nn.Module):
    """`Standardize` with its moments as constants."""

    def __init__(self, running: Standardize) -> None:
        super().__init__()
        self.mean_K, self.deviation_K = map(nn.Buffer, running.constants())
        self.boundaries = running.boundaries()

    def forward(self, numbers_BK: Tensor) -> Tensor:
        return standardize(numbers_BK, self.mean_K, self.deviation_K, self.boundaries)


class _Smoothed(nn.Module):
    """A layer whose input columns are divided by `divisor_I` and its weights multiplied by it."""

    def __init__(self, layer: BlockLinear, divisor_I: Tensor) -> None:
        super().__init__()
        self.factor_I = nn.Buffer(1 / divisor_I)
        self.layer = layer
        layer.weight.data.mul_(divisor_I)

    def forward(self, input_BI: Tensor) -> Tensor:
        output: Tensor = self.layer(input_BI * self.factor_I)
        return output


class _Serving(nn.Module):
    """Embeddings and numbers in, probabilities [B, T] out."""

    def __init__(self, ranker: Ranker, divisor_I: Tensor) -> None:
        super().__init__()
        self.network = copy.deepcopy(ranker.network).eval()
        self.network.set_submodule("standardize", _Standardize(ranker.network.standardize))
        # Only the layers' inputs: some architectures also multiply input columns with each other, unscaled.
        for path, layer in list(self.network.architecture.named_modules()):
            if isinstance(layer, BlockLinear) and layer.blocks["weight"].get(1) == self.network.widths:
                self.network.architecture.set_submodule(path, _Smoothed(layer, divisor_I))
        self.shift_T = nn.Buffer(torch.zeros(len(ranker.tasks)))

    def forward(self, emb_BFD: Tensor, numbers_BK: Tensor, *pairs_B: Tensor) -> Tensor:
        logits_BT: Tensor = self.network(emb_BFD, numbers_BK, *pairs_B) + self.shift_T
        return logits_BT.sigmoid()


@torch.no_grad()
def largest_inputs(ranker: Ranker, model: OnnxModel, samples: pa.Table) -> Tensor:
    """The largest absolute value [I] of each input column of the architecture over `samples`."""
    largest = []
    for encoded in _batches(model, samples):
        emb_BFD, numbers_BK = model.embed(encoded), torch.from_numpy(encoded.numbers_NK)
        inputs = [torch.from_numpy(emb_BFD).flatten(1), ranker.network.standardize(numbers_BK)]
        largest.append(torch.cat(inputs, 1).abs().amax(0))
    return torch.stack(largest).amax(0)


def write_onnx(ranker: Ranker, file: Path, largest_I: Tensor | None = None) -> None:
    """Writes the dense part as an ONNX graph. `largest_I` smooths the first layers' inputs."""
    layout, widths = ranker.layout, ranker.network.widths
    # At least 1e-4: a column that is 0 on all calibration rows still needs a divisor.
    divisor_I = torch.ones(sum(widths.values())) if largest_I is None else largest_I.clamp(min=1e-4).sqrt()
    module = _Serving(ranker, divisor_I).eval()
    num_embedded = len(layout.slots) + len(layout.bags)
    example = [torch.zeros(2, num_embedded, ranker.model.embedding_dim), torch.zeros(2, len(layout.numbers))]
    inputs, weight_F = ["embeddings", "numbers"], ranker.network.architecture.pair_weights
    if weight_F is not None:
        inputs.append(PAIRS)
        example.append(torch.zeros(2))
    axes = {name: {0: "B"} for name in (*inputs, "probabilities")}
    with warnings.catch_warnings():
        # The tracing exporter is deprecated, but the newer one takes 100 times as long for the same graph.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, tuple(example), str(file), input_names=inputs, output_names=["probabilities"],
            dynamic_axes=axes, opset_version=OPSET, dynamo=False,
        )  # fmt: skip
    _strip(file, {} if weight_F is None else {PAIRS: json.dumps(weight_F.tolist())})


def quantize_dense(source: Path, target: Path, model: OnnxModel, samples: pa.Table) -> None:
    """Quantizes the dense layers of a written graph, with ranges of activations seen on `samples`."""
    with _quiet():
        quantize_static(
            source,
            target,
            _Calibration(model, samples),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Gemm", "MatMul"],
            per_channel=True,
            reduce_range=True,  # 7 bits: products of 8 bits saturate in x86's 16-bit sums (before VNNI)
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.Percentile,  # the largest value would spend most steps on one outlier
            # Outputs stay fp32: a logit in 256 steps would cost more calibration than everything else.
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
        )
    _strip(target, {one.key: one.value for one in onnx.load(source, load_external_data=False).metadata_props})


def correct_bias(file: Path, wanted_NT: Floats, found_NT: Floats) -> None:
    """Shifts each task's logit so that the int8 and fp32 scores have equal means (Nagel et al., ICCV 2019).

    Rounding alone moves the mean of a rare task by a few percent.
    """
    model = onnx.load(file)
    (shift_T,) = (tensor for tensor in model.graph.initializer if tensor.name == "shift_T")
    # Clipped: a mean of 0 or 1 has no logit.
    wanted_T, found_T = (scores.mean(0, dtype=np.float64).clip(1e-9, 1 - 1e-9) for scores in (wanted_NT, found_NT))
    logits_T = np.log(wanted_T / (1 - wanted_T)) - np.log(found_T / (1 - found_T))
    shift_T.CopyFrom(onnx.numpy_helper.from_array(logits_T.astype(np.float32), shift_T.name))
    onnx.save(model, file)


class _Calibration(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, model: OnnxModel, samples: pa.Table) -> None:
        self._feeds = (model.feeds(encoded) for encoded in _batches(model, samples))

    def get_next(self) -> Feeds | None:
        return next(self._feeds, None)


def _batches(model: OnnxModel, samples: pa.Table) -> Iterator[Encoded]:
    # ONNX Runtime stacks the activations of all batches, which must have one size: a smaller last batch is left out.
    num_batches = max(1, len(samples) // CALIBRATION_BATCH)
    for begin in range(0, num_batches * CALIBRATION_BATCH, CALIBRATION_BATCH):
        yield encode(samples.slice(begin, CALIBRATION_BATCH), model.layout)


def _strip(file: Path, metadata: dict[str, str]) -> None:
    """Removes texts that contain paths of the host that wrote the graph: equal models must give equal bytes. Of the
    metadata only this stays."""
    model = onnx.load(file)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, metadata)
    model.doc_string = model.graph.doc_string = ""
    for node in model.graph.node:
        node.doc_string = ""
    onnx.save(model, file)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the quantizer: it prints to stdout, which belongs to the step's result, and warns about our settings."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
