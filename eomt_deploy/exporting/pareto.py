"""The Pareto front of a quantised export: quantised fraction against accuracy loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from eomt_deploy.cache import import_matplotlib
from eomt_deploy.errors import MissingDependencyError
from eomt_deploy.exporting.config import FRONT_JSON, FRONT_PLOT
from eomt_deploy.files import GENERATOR, write_atomically

if TYPE_CHECKING:
    from eomt_deploy.exporting.verdict import Verdict


def check_matplotlib() -> None:
    """Check before the search that its plot can be drawn.

    Raises:
        MissingDependencyError: matplotlib is missing.
    """
    try:
        import_matplotlib()
    except ImportError as error:
        raise MissingDependencyError(
            "--budget needs matplotlib for the Pareto plot, and it is not installed.",
            fix="pip install 'eomt-deploy[export]'",
        ) from error


def write_front(verdict: Verdict, model: Path) -> tuple[Path, Path]:
    """Write ``<model>.pareto.json`` and ``.png``, and return their paths."""
    data, picture = model.with_suffix(FRONT_JSON), model.with_suffix(FRONT_PLOT)
    content = {"generator": GENERATOR, **verdict.to_dict()}
    write_atomically(data, json.dumps(content, indent=1).encode() + b"\n")
    write_atomically(picture, draw_front(verdict))
    return data, picture


def draw_front(verdict: Verdict) -> bytes:
    """The trials as a plot, in PNG format."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    front, chosen = verdict.front, verdict.chosen
    axes.plot(
        [100 * t.share for t in front], [t.judgement.drop for t in front],
        "-", color="tab:blue", label="Pareto front",
    )  # fmt: skip
    for trial in verdict.trials:
        point = (100 * trial.share, trial.judgement.drop)
        axes.plot(*point, "o", color="tab:red" if trial is chosen else "tab:blue")
        axes.annotate(
            f"{len(trial.kept)} kept", point, xytext=(4, 5), textcoords="offset points", fontsize=8
        )
    axes.plot([], [], "o", color="tab:red", label="exported")
    if verdict.budget is not None:
        axes.axhline(verdict.budget, color="grey", linestyle="--", label="budget")
    axes.set_xlim(-5, 105)
    highest = max([t.judgement.drop for t in verdict.trials] + [verdict.budget or 0])
    axes.set_ylim(min(0.0, *(t.judgement.drop for t in verdict.trials)) - 0.05, 1.2 * highest + 0.1)
    axes.set_xlabel("quantised weights of the blocks, %")
    axes.set_ylabel(f"points of {verdict.unit} lost")
    axes.legend(loc="upper left", fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": GENERATOR})
    return buffer.getvalue()
