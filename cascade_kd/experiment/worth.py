"""Whether a teacher's order is worth following: does it order a student's output better than the student (floor 8)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cascade_kd.cascade import batches_of
from cascade_kd.config import ExperimentConfig
from cascade_kd.config.tables import DistillConfig
from cascade_kd.distill import ListsConfig
from cascade_kd.evaluate import Evaluation, list_metrics
from cascade_kd.experiment.lists import counted_in, through
from cascade_kd.experiment.workshop import Round
from cascade_kd.metrics import hits
from cascade_kd.types import Candidates

Tree = dict[str, Any]


def order_of_kept(config: ExperimentConfig, teachers: Round, pair: DistillConfig, base: Evaluation) -> Tree:
    """``teacher`` and ``student``: recall@k and ndcg@k of their orders of what the undistilled student hands on.

    Both over the same test requests and positives, k the last stage's ``keep``. The teacher orders as it serves, with
    the scores of the stages between where it counts them in. Empty for pairs that do not learn on lists and for
    teachers that order no candidates.
    """
    teacher = teachers[pair.teacher].stage
    if not (isinstance(pair, ListsConfig) and pair.on_lists and "ranking" in teacher.signals):
        return {}
    kept, asked = base.trace.step(pair.student).kept, base.asked
    after_student = 1 + [stage.name for stage in config.stages].index(pair.student)
    later = [trained.stage for trained in counted_in(config, teachers, pair.teacher, after_student)]
    orders = {
        "teacher": Candidates.concat(
            [through([*later, teacher], asked.requests[rows], kept[rows]) for rows in batches_of(len(asked.requests))]
        ),
        "student": kept,
    }
    return {
        who: list_metrics(
            hits(order.item_BK, order.valid_BK, asked.offsets_B1, asked.positive_P),
            asked.offsets_B1.diff(),
            {min(config.stages[-1].keep, order.width)},
        )
        for who, order in orders.items()
    }


def notes_on_teachers(config: ExperimentConfig, seed: str, tree: Tree) -> Iterator[str]:
    """A line for every teacher of lists that orders its student's output no better than the student does."""
    for pair in config.distill:
        orders = tree["distill"].get(pair.name, {}).get("order_of_kept")
        if not orders:
            continue
        name = next(key for key in orders["teacher"] if key.startswith("ndcg@"))
        taught, own = (orders[who][name]["mean"] for who in ("teacher", "student"))
        if taught is not None and own is not None and taught <= own:
            yield (
                f"Seed {seed}: '{pair.teacher}' orders what '{pair.student}' hands on no better than '{pair.student}' "
                f"does ({name} {taught:.4f}, against {own:.4f}), so its order is not worth learning yet. Train it on "
                'what reaches it: samples from = "upstream" or "hard" beside "uniform", and richer features.'
            )
