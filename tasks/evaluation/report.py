"""The evaluation as one HTML file that needs nothing else: a verdict in words, plots, tables."""

from __future__ import annotations

import contextlib
import html
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.store.output_files import read_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from feature_jobs.schema import Scenario
    from tasks.evaluation.scored_day import ScoredDay, Scores

CHAMPION, CHALLENGER, LIMIT = "#64748b", "#c2410c", "#b91c1c"
KEY = (
    f'<span class="key" style="color:{CHALLENGER}">challenger</span>'
    f' <span class="key" style="color:{CHAMPION}">champion</span>'
)
LINES = ("#c2410c", "#1d4ed8", "#047857", "#7c3aed", "#a16207", "#be185d")
HEAD = ("rows", "positive", "AUC", "champion's", "difference", "interval", "entropy", "calibration", "GAUC")
STYLE = {
    "svg.hashsalt": "recloop",
    "svg.fonttype": "none",
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
CSS = """
:root { color: #0f172a; background: #f1f5f9; font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
body { max-width: 1020px; margin: 0 auto; padding: 32px 20px 64px }
h1 { font-size: 26px; margin: 0 } h2 { font-size: 18px; margin: 36px 0 8px }
.sub { color: #475569; margin: 2px 0 20px } .note { color: #475569; margin: 4px 0 12px; max-width: 74ch }
.verdict { border-left: 6px solid; border-radius: 6px; padding: 14px 18px; background: #fff; margin: 12px 0 }
.verdict b { font-size: 17px } .verdict ul { margin: 6px 0 0; padding-left: 20px }
.yes { border-color: #15803d } .no { border-color: #b91c1c } .warn { border-color: #b45309 }
.card { background: #fff; border-radius: 8px; padding: 12px 16px; margin: 12px 0; overflow-x: auto }
.card svg { width: 100%; height: auto; display: block } figure { margin: 0 }
figcaption { color: #475569; font-size: 13.5px; margin-top: 6px; max-width: 90ch }
.key { font-weight: 600; margin-right: 6px } .key::before { content: "\\25CF\\00A0" }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: 5px 8px; border-bottom: 1px solid #e2e8f0; white-space: nowrap }
th { color: #475569; font-weight: 600; font-size: 13px } th:first-child, td:first-child { text-align: left }
tr:last-child td { border-bottom: 0 } .bad { color: #b91c1c; font-weight: 600 } .good { color: #15803d }
code { background: #e2e8f0; border-radius: 4px; padding: 1px 5px; font-size: 13px }
"""


def write_report(
    scenario: Scenario,
    result: Mapping[str, Any],
    day: ScoredDay,
    *,
    champion: Scores | None,
    validation: Path,
    output: Path,
) -> None:
    """Writes report.html beside evaluation.json, whose content is `result`; `champion` are its scores of the day."""
    checks = read_json(validation, "verdict.json")
    with _plain_style():
        page = _page(scenario, result, day, champion, checks)
    (output / "report.html").write_text(page, encoding="utf-8")


def _page(
    scenario: Scenario, result: Mapping[str, Any], day: ScoredDay, champion: Scores | None, checks: Mapping[str, Any]
) -> str:
    parts = [
        f"<h1>{_text(scenario.name)} · {result['ds']}</h1>",
        f'<p class="sub">{_text(scenario.description)}</p>',
        _verdict(result),
        _next_day(result),
        "<h2>Challenger and champion on the holdout</h2>",
        f'<p class="note">{_holdout_note(result)}</p>',
        _card(_overall_table(result)),
        _history_section(result),
        "<h2>Do the scores mean what they say?</h2>",
        _card(
            _calibration(day, champion),
            f"{KEY} Each dot is a tenth of the holdout's rows, ordered by score. On the dashed "
            "line what was promised is what came; above it the model promises too little, below it too much.",
        ),
        _card(
            _histogram(day, champion),
            f"{KEY} How the scores of the holdout are spread. A narrow peak tells rows apart badly.",
        ),
        _segments_section(scenario, result),
        _drift_section(checks),
        _provenance(result),
    ]
    body = "\n".join(part for part in parts if part)
    title = f"{_text(scenario.name)} {result['ds']}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{CSS}</style></head>'
        f"<body>\n{body}\n</body></html>\n"
    )


def _verdict(result: Mapping[str, Any]) -> str:
    comparison = result["comparison"]
    if not comparison["ok"]:
        return _banner("no", "The challenger should not be promoted", comparison["reasons"])
    if result["champion"] is None:
        return _banner("yes", "No champion yet: nothing to compare the challenger with", [])
    better = [task for task, facts in result["overall"].items() if (facts["difference"]["low"] or 0) > 0]
    words = f"better in {', '.join(better)}, worse in none" if better else "as good as the champion, within chance"
    return _banner("yes", f"The challenger is {_text(words)}", [])


def _next_day(result: Mapping[str, Any]) -> str:
    found = result["next_day"]
    titles = {
        "hold": "Hold: the chain has fallen behind the champion on this day's rows",
        "rollback_proposed": "Rollback proposed: the champion did worse on this day than the one before it would have",
    }
    return _banner("warn", titles[found["verdict"]], found["reasons"]) if found["verdict"] in titles else ""


def _banner(kind: str, title: str, reasons: Iterable[str]) -> str:
    items = "".join(f"<li>{_text(reason)}</li>" for reason in reasons)
    return f'<div class="verdict {kind}"><b>{title}</b>{f"<ul>{items}</ul>" if items else ""}</div>'


def _holdout_note(result: Mapping[str, Any]) -> str:
    rows = result["rows"]
    return (
        f"The last {rows['holdout']:,} of the day's {rows['day']:,} rows by event time. The challenger had learned the"
        " rows before them; the champion, nothing of this day. The interval is a paired bootstrap's."
    )


def _overall_table(result: Mapping[str, Any]) -> str:
    return _table(
        ("task", *HEAD), [[_text(task), *_comparison_cells(facts)] for task, facts in result["overall"].items()]
    )


def _comparison_cells(facts: Mapping[str, Any]) -> list[str]:
    ours, theirs, difference = facts["challenger"], facts["champion"] or {}, facts["difference"] or {}
    gap, low, high = (difference.get(name) for name in ("auc", "low", "high"))
    color = "bad" if high is not None and high < 0 else "good" if low is not None and low > 0 else ""
    share = facts["positives"] / facts["rows"] if facts["rows"] else None
    return [
        f"{facts['rows']:,}",
        _number(share, "{:.1%}"),
        _number(ours["auc"]),
        _number(theirs.get("auc")),
        f'<span class="{color}">{_number(gap, "{:+.4f}")}</span>',
        f"{_number(low, '{:+.4f}')} … {_number(high, '{:+.4f}')}" if gap is not None else "–",
        _number(ours["normalized_entropy"]),
        _number(ours["calibration"], "{:.3f}"),
        _number(ours["gauc"]),
    ]


def _history_section(result: Mapping[str, Any]) -> str:
    if not result["history"]:
        return ""
    days = sorted({point["ds"] for point in result["history"]})
    tasks = list(dict.fromkeys(point["task"] for point in result["history"]))
    figure, (axes,) = _figure(1, height=2.9)
    for color, task in zip(_cycle(LINES), tasks, strict=False):
        points = {p["ds"]: p["auc"] for p in result["history"] if p["task"] == task}
        axes.plot(range(len(days)), [_nan(points.get(d)) for d in days], marker="o", ms=4, color=color, label=task)
    every = max(1, len(days) // 10)
    axes.set_xticks(range(0, len(days), every), days[::every])
    axes.set_xlim(-0.3, max(len(days) - 0.7, 0.3))
    axes.set_ylabel("AUC")
    axes.legend(ncols=len(tasks), loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0)
    note = "Each day's rows, scored by the model of the day before, which had seen none of them."
    return f"<h2>Progressive AUC by day</h2>{_card(_svg(figure), note)}"


def _calibration(day: ScoredDay, champion: Scores | None) -> str:
    from models.metrics.scores import calibration_curve

    figure, panels = _figure(len(day.gate), height=2.9)
    for axes, task in zip(panels, day.gate, strict=True):
        top = 0.0
        for _, color, labels, scores in _sides(day, champion, task):
            curve = calibration_curve(labels, scores)
            axes.plot(curve.scores, curve.labels, marker="o", ms=3.5, lw=1.2, color=color)
            top = max([top, *curve.scores, *curve.labels])
        axes.plot([0, top], [0, top], ls="--", lw=1, color="#94a3b8")
        axes.set(title=task, xlabel="mean score", ylabel="share that came true")
    return _svg(figure)


def _histogram(day: ScoredDay, champion: Scores | None) -> str:
    import numpy as np

    figure, panels = _figure(len(day.gate), height=2.5)
    for axes, task in zip(panels, day.gate, strict=True):
        sides = list(_sides(day, champion, task))
        top = max([float(scores.max()) for *_, scores in sides if len(scores)], default=1.0)
        bins = min(40, max(10, max(len(scores) for *_, scores in sides) // 20))
        for name, color, _, scores in sides:
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


def _segments_section(scenario: Scenario, result: Mapping[str, Any]) -> str:
    if not result["segments"]:
        return ""
    rows = [
        [f"{_text(name)} · {_text(task)}{'' if facts['judged'] else ' *'}", *_comparison_cells(facts)]
        for name, tasks in result["segments"].items()
        for task, facts in tasks.items()
    ]
    meaning = "; ".join(f"{name}: <code>{_text(rule)}</code>" for name, rule in scenario.evaluate.segments.items())
    note = f"{meaning}. * fewer than {scenario.deploy.min_segment_rows} rows: shown, not judged."
    return f'<h2>Segments</h2><p class="note">{note}</p>{_card(_table(("segment · task", *HEAD), rows))}'


def _drift_section(checks: Mapping[str, Any]) -> str:
    drift = checks.get("drift") or {}
    known = {name: facts for name, facts in drift.items() if facts.get("psi") is not None}
    if not known:
        return ""
    names = sorted(known, key=lambda name: (known[name]["psi"], name))
    figure, (axes,) = _figure(1, height=0.7 + 0.24 * len(names))
    values = [known[name]["psi"] for name in names]
    colors = [CHAMPION if known[name].get("ok", True) else LIMIT for name in names]
    axes.barh(names, values, color=colors, height=0.6)
    limit = known[names[0]].get("limit")
    if limit is not None:
        axes.axvline(limit, color=LIMIT, ls="--", lw=1)
    axes.set_xlim(0, max([*values, limit or 0]) * 1.08 or 1)
    axes.set_xlabel("population stability index")
    axes.grid(visible=False, axis="y")
    note = (
        "How far each column moved from the trailing days: below 0.1 is calm, above the dashed line the scenario asks"
        " for attention."
    )
    return f"<h2>Feature drift</h2>{_card(_svg(figure), note)}"


def _provenance(result: Mapping[str, Any]) -> str:
    rows = [
        [name.replace("_", " "), f"<code>{result[name][:16]}</code>" if result[name] else "none"]
        for name in ("challenger", "parent", "champion", "former_champion")
    ]
    return f"<h2>Checkpoints</h2>{_card(_table(('', 'digest'), rows))}"


def _figure(columns: int, height: float) -> tuple[Figure, list[Axes]]:
    """A row of panels, nine inches wide in all."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    across = min(columns, 3)
    down = -(-columns // across)
    figure = Figure(figsize=(9, height * down))
    FigureCanvasSVG(figure)
    panels = figure.subplots(down, across, squeeze=False)
    for spare in panels.flat[columns:]:
        spare.set_visible(False)
    return figure, list(panels.flat[:columns])


@contextlib.contextmanager
def _plain_style() -> Iterator[None]:
    """Our style over matplotlib's own defaults, whatever this machine's matplotlibrc says."""
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


def _card(content: str, caption: str = "") -> str:
    if not caption:
        return f'<div class="card">{content}</div>'
    return f'<figure class="card">{content}<figcaption>{caption}</figcaption></figure>'


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    header = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>"


def _number(value: float | None, form: str = "{:.4f}") -> str:
    return "–" if value is None else form.format(value)


def _nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _cycle(colors: tuple[str, ...]) -> Iterable[str]:
    import itertools

    return itertools.cycle(colors)


def _text(value: str) -> str:
    return html.escape(str(value))
