import copy

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn
from torch.nn import functional

from feature_jobs.schema import Model, Quantize
from feature_jobs.transforms import Layout
from models.architectures import ARCHITECTURES
from models.architectures.dropout import dropout_seed
from models.architectures.interactions import factorization
from models.checkpoints import checkpoint as checkpoints
from models.export.export import export
from models.ranking.ranker import Ranker
from models.runtime.files import MODEL_FILE
from models.training.day import score, train_day
from models.training.job import TrainJob
from tests.unit.models.days import DAYS, day_table, shop, write_day

VARIANTS = {
    **{name: {"architecture": name} for name in ARCHITECTURES},
    "deepfm without towers": {"architecture": "deepfm", "tower": ()},
    "dcnv2 parallel": {"architecture": "dcnv2", "cross": "parallel"},
    "dcnv2 low-rank": {"architecture": "dcnv2", "cross_rank": 3},
    "dlrm without a tower": {"architecture": "dlrm", "tower": ()},
}
WIDTHS = {"a": 4, "b": 4, "noise": 4, "x:number": 2}


def built(variant, tasks=("click",), **options):
    torch.manual_seed(0)
    model = Model(**{"embedding_dim": 4, "bottom": (16, 8), "tower": (8,), **VARIANTS[variant], **options})
    return ARCHITECTURES[model.architecture](WIDTHS, tasks, model)


def scenario_of(folder, variant, **overrides):
    return shop(folder, **{f"model__{name}": value for name, value in VARIANTS[variant].items()}, **overrides)


def learned(scenario, folder, days, parent=None):
    """The last of a chain of checkpoints, and its samples."""
    for ds in days:
        samples, output = write_day(folder / f"samples-{ds}", ds, 1000), folder / f"checkpoint-{ds}"
        output.mkdir()
        train_day(TrainJob(scenario, ds, samples, parent, output))
        parent = output
    return parent, samples


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_crossed_features_are_learned(variant):
    network, tables = built(variant), nn.ModuleList(nn.Embedding(2, 4) for _ in range(3))
    optimizer = torch.optim.Adam([*network.parameters(), *tables.parameters()], lr=0.01)
    for step in range(301):
        ids = torch.randint(0, 2, (256, 3))
        labels = (ids[:, 0] ^ ids[:, 1]).float()
        emb = [table(ids[:, f]) for f, table in enumerate(tables)]
        logits = network(torch.cat([*emb, torch.randn(256, 2)], 1))[:, 0]
        if step == 300:
            assert float(((logits > 0) == (labels > 0)).float().mean()) > 0.95
        optimizer.zero_grad()
        functional.binary_cross_entropy_with_logits(logits, labels).backward()
        optimizer.step()


@pytest.mark.parametrize("variant", VARIANTS)
def test_half_precision_is_near(variant):
    network, input_BI = built(variant, ("click", "buy")), torch.randn(512, 14)
    for dtype in (torch.bfloat16, torch.float16):
        found, wanted = (
            copy.deepcopy(network).to(dtype)(input_BI.to(dtype)).float().detach(),
            network(input_BI).detach(),
        )
        assert found.shape == (512, 2)
        assert float((found - wanted).norm()) < 0.02 * float(wanted.norm())


@pytest.mark.parametrize("variant", VARIANTS)
def test_dropout_follows_its_seed(variant):
    network, input_BI = built(variant, dropout=0.5).train(), torch.randn(64, 14)

    def logits(seed):
        with dropout_seed(seed):
            return network(input_BI)

    assert torch.equal(logits(1), logits(1))
    assert not torch.equal(logits(1), logits(2))


def test_deepfm_without_towers_is_the_papers():
    network, input_BI = built("deepfm without towers"), torch.randn(9, 14)
    deep = network.towers["click:tower"](network.bottom(network.first(input_BI)))
    wanted = deep[:, 0] + network.linear["click:logit"](input_BI)[:, 0] + factorization(input_BI, torch.ones(3), 4)
    assert torch.allclose(network(input_BI)[:, 0], wanted, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_new_feature_changes_no_score_before_it_is_learned(tmp_path, variant):
    """Of `clicked` the vectors are known already: the item's."""
    new = ("city", "price", "tags", "clicked", "seen")
    parent, _ = learned(
        scenario_of(tmp_path, variant, **{f"features__{name}__enabled": False for name in new}), tmp_path, DAYS[:1]
    )
    scenario, table = scenario_of(tmp_path, variant), day_table(DAYS[1])
    ranker = Ranker(Layout.from_scenario(scenario), scenario.tasks, scenario.model, scenario.train)
    report = checkpoints.restore(ranker, parent)
    assert report["dense"]["resized"] == report["dense"]["dropped"] == []
    folder = tmp_path / "restored"
    folder.mkdir()
    checkpoints.save(ranker, folder, {"scenario": "shop", "ds": DAYS[0]})
    for task, scores in score(parent, table).items():
        assert score(folder, table)[task] == pytest.approx(scores, abs=1e-6)
    child, _ = learned(scenario, tmp_path, DAYS[1:2], parent)
    after, dense = score(child, table), checkpoints.read_tensors(child / checkpoints.DENSE)
    assert all(np.isfinite(scores).all() for scores in after.values())
    assert all(tensor.any() for name, tensor in dense.items() if ":clicked" in name and name in report["dense"]["new"])
    dropped, _ = learned(scenario_of(tmp_path, variant, features__city__enabled=False), tmp_path, DAYS[2:3], child)
    facts = checkpoints.read_facts(dropped)["restored"]["dense"]
    assert facts["new"] == facts["resized"] == []
    assert facts["dropped"]
    assert all("city" in name for name in facts["dropped"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_export_is_the_model(tmp_path, variant):
    """fp32 to rounding, int8 nearly."""
    checkpoint, samples = learned(scenario_of(tmp_path, variant), tmp_path, DAYS[:2])
    facts = export(checkpoint, samples, tmp_path, Quantize(max_auc_loss=0.01, max_calibration_shift=0.02))
    assert (tmp_path / MODEL_FILE).exists()
    wanted = score(checkpoint, pq.read_table(samples / "samples.parquet"))
    reference = pq.read_table(tmp_path / "reference.parquet")
    rows = np.linspace(0, 999, len(reference)).round().astype(int)
    for task, scores in wanted.items():
        assert reference[f"fp32.{task}"].to_numpy() == pytest.approx(scores[rows], abs=2e-5)
        assert np.abs(reference[f"int8.{task}"].to_numpy() - scores[rows]).mean() < 0.02
        assert facts["int8"]["auc"][task] == pytest.approx(facts["fp32"]["auc"][task], abs=0.01)
