"""The figures of an evaluation's report, as <svg> elements whose bytes depend on the data alone."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tasks.evaluation.comparison import DayQuality
    from tasks.evaluation.scored_day import ScoredDay, Scores

CHAMPION, CHALLENGER, LIMIT = "#64748b", "#c2410c", "#b91c1c"
LINES = ("#c2410c", "#1d4ed8", "#047857", "#7c3aed", "#a16207", "#be185d")
STYLE = {
    "svg.hashsalt": "recloop",  # ids would be random
    "svg.fonttype": "none",  # text stays text: small, searchable, and without this machine's fonts
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#94a3b8",
    "axes.labelcolor": "#475569",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e2e8f0",
    "grid.linewidth": 0.8,
    "xtick.color": "#475569",
    "ytick.color": "#475569",
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def draw_history(points: list[DayQuality]) -> str | None:
    """The progressive AUC of each task over the days."""
    if not points:
        return None
    days = sorted({point["ds"] for point in points})
    tasks = list(dict.fromkeys(point["task"] for point in points))
    figure, (axes,) = _figure(1, height=2.9)
    for color, task in zip(itertools.cycle(LINES), tasks, strict=False):
        aucs = {p["ds"]: p["auc"] for p in points if p["task"] == task}
        axes.plot(range(len(days)), [_nan(aucs.get(d)) for d in days], marker="o", ms=4, color=color, label=task)
    # About ten dates stand beside each other in nine inches.
    every = max(1, len(days) // 10)
    axes.set_xticks(range(0, len(days), every), days[::every])
    # Half a day on each side: a chain of one day would have no width.
    axes.set_xlim(-0.3, max(len(days) - 0.7, 0.3))
    axes.set_ylabel("AUC")
    axes.legend(ncols=len(tasks), loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0)
    return _svg(figure)


def draw_calibration(day: ScoredDay, champion: Scores | None) -> str:
    """Mean label over mean score by tenths of the holdout, a panel for each task."""
    from models.metrics.scores import calibration_curve

    figure, panels = _figure(len(day.gate), height=2.9)
    for axes, task in zip(panels, day.gate, strict=True):
        top = 0.0
        for _, color, labels, scores in _sides(day, champion, task):
            curve = calibration_curve(labels, scores)
            axes.plot(curve.scores, curve.labels, marker="o", ms=3.5, lw=1.2, color=color)
            top = max([top, *curve.scores, *curve.labels])
        axes.plot([0, top], [0, top], ls="--", lw=1, color="#94a3b8")
        axes.set(title=task, xlabel="mean score", ylabel="mean label")
    return _svg(figure)


def draw_histogram(day: ScoredDay, champion: Scores | None) -> str:
    """Draws the distribution of the holdout's scores, a panel for each task."""
    import numpy as np

    figure, panels = _figure(len(day.gate), height=2.5)
    for axes, task in zip(panels, day.gate, strict=True):
        sides = list(_sides(day, champion, task))
        top = max([float(scores.max()) for *_, scores in sides if len(scores)], default=1.0)
        bins = min(40, max(10, max(len(scores) for *_, scores in sides) // 20))
        for name, color, _, scores in sides:
            # One range for both models: bins of two ranges can't be compared.
            counts, edges = np.histogram(scores, bins=bins, range=(0.0, top or 1.0))
            filled = name == "champion"
            axes.stairs(
                counts / max(len(scores), 1), edges, color=color, fill=filled, alpha=0.35 if filled else 1, lw=1.4
            )
        axes.set(title=task, xlabel="score", ylabel="share of rows")
    return _svg(figure)


def _sides(day: ScoredDay, champion: Scores | None, task: str) -> Iterable[tuple[str, str, Any, Any]]:
    """(name, color, labels, scores) of both models on the holdout rows whose label is known."""
    for name, color, scores in (("champion", CHAMPION, champion), ("challenger", CHALLENGER, day.gate)):
        if scores is not None:
            kept = day.holdout_N & (day.labels[task] == day.labels[task]) & (scores[task] == scores[task])
            yield name, color, day.labels[task][kept], scores[task][kept]


def draw_drift(checks: Mapping[str, Any]) -> str | None:
    """The drift of each column that validation measured."""
    known = {name: facts for name, facts in (checks.get("drift") or {}).items() if facts.get("psi") is not None}
    if not known:
        return None
    names = sorted(known, key=lambda name: (known[name]["psi"], name))
    figure, (axes,) = _figure(1, height=0.7 + 0.24 * len(names))
    values = [known[name]["psi"] for name in names]
    colors = [CHAMPION if known[name].get("ok", True) else LIMIT for name in names]
    axes.barh(names, values, color=colors, height=0.6)
    limit = known[names[0]].get("limit")
    if limit is not None:
        axes.axvline(limit, color=LIMIT, ls="--", lw=1)
    # or 1: where all values are 0, the axis still needs a length.
    axes.set_xlim(0, max([*values, limit or 0]) * 1.08 or 1)
    axes.set_xlabel("population stability index")
    axes.grid(visible=False, axis="y")
    return _svg(figure)


def _figure(columns: int, height: float) -> tuple[Figure, list[Axes]]:
    """A row of panels, nine inches wide in all."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    across = min(columns, 3)
    down = -(-columns // across)
    figure = Figure(figsize=(9, height * down))
    FigureCanvasSVG(figure)  # not pyplot, which keeps every figure and looks for a display
    panels = figure.subplots(down, across, squeeze=False)
    for spare in panels.flat[columns:]:
        spare.set_visible(False)
    return figure, list(panels.flat[:columns])


@contextlib.contextmanager
def plain_style() -> Iterator[None]:
    """Our style over matplotlib's own defaults: a matplotlibrc of this machine must not change the bytes."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def _svg(figure: Figure) -> str:
    """The figure as an <svg> element, without date, version or random ids."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _nan(value: float | None) -> float:
    return float("nan") if value is None else value
