"""The stages of one objective, trained in the same steps (floor 8)."""

from __future__ import annotations

from collections.abc import Sequence

from cascade_kd.distill.objectives import (
    AnyObjective,
    ARFConfig,
    ICCConfig,
    LCRONConfig,
    ObjectiveConfig,
)
from cascade_kd.errors import UserError
from cascade_kd.experiment.lists import as_shown, kept_lists, list_kind, order_key, ordered_lists
from cascade_kd.experiment.nets import net_of
from cascade_kd.experiment.store import content_key
from cascade_kd.experiment.training import (
    about_training,
    as_module,
    as_stage,
    new_net,
    plain_task,
    restore,
    taught_task,
    training_content,
)
from cascade_kd.experiment.upstream import read_lists_key
from cascade_kd.experiment.workshop import Round, Trained, Workshop, stages_before
from cascade_kd.serve import prove_availability
from cascade_kd.streams import stream
from cascade_kd.train import Student, is_finished, load_best
from cascade_kd.train.cascade_terms import make_objective
from cascade_kd.train.distributed import num_ranks
from cascade_kd.train.teacher_lists import TeacherLists, logged_lists
from cascade_kd.train.together import fit_together


def train_objective(shop: Workshop, seed: int, round_number: int, objective: AnyObjective, before: Round) -> Round:
    """Train the stages of an objective together, or take them from the store; each is then a stage like any other.

    Every stage learns from the rows, upstream lists and offline teachers that it would have alone; ``before`` is the
    round before.
    """
    config, dataset = shop.config, shop.dataset
    if num_ranks() > 1:
        raise UserError(f"objective {objective.name}: its stages are trained in one process; run without torchrun")
    stages = [config.stage(name) for name in objective.stages]
    upstream = {s.name: stages_before(config, s, before) for s in stages}
    pairs = {s.name: [d for d in config.distill if d.student == s.name] for s in stages}
    first = stages[0].name
    group = content_key(
        objective=objective.model_dump(),
        teacher=None if objective.teacher is None else before[objective.teacher].key,
        before=[before[s.name].key for s in config.stages],  # tutors, and who finds what a teacher orders
        ordered=None if objective.teacher is None else order_key(shop, objective, before, upstream[first]),
        stages=[
            training_content(shop, seed, round_number, s, upstream[s.name], before, pairs[s.name])
            | {"label_weight": s.label_weight}
            for s in stages
        ],
    )
    keys = {s.name: content_key(group=group, stage=s.name) for s in stages}
    nets = {s.name: new_net(shop, seed, round_number, s) for s in stages}
    built = {s.name: as_stage(s, nets[s.name].model, nets[s.name].features, dataset) for s in stages}
    folders = {s.name: shop.folder(seed, round_number, s.name) for s in stages}
    for s in stages:
        prove_availability(built[s.name])
        restore(shop, keys[s.name], folders[s.name], s.name, seed, round_number)
    if not all(is_finished(folder) for folder in folders.values()):
        tasks = []
        for s in stages:
            lists_key = read_lists_key(shop, s, upstream[s.name])
            task = plain_task(shop, seed, round_number, s, nets[s.name], upstream[s.name])
            title = shop.progress.title(s.name, {"seed": seed, "round": round_number})
            tasks.append(
                taught_task(shop, s, nets[s.name], task, pairs[s.name], before, lists_key, upstream[s.name], title)
            )
        title = shop.progress.title(objective.name, {"seed": seed, "round": round_number})
        lists = _lists(shop, objective, before, upstream[first], title)
        earlier = [net_of(before[s.name].stage) for s in stages]
        fit_together(
            tasks,
            make_objective(
                objective,
                lists,
                tasks,
                [Student(s.name, net.model, net.features) for s, net in zip(stages, earlier, strict=True)],
                stream(seed, max(round_number, 1), objective.name),
            ),
            list(folders.values()),
            shop.progress,
            abouts=[about_training(s.name, seed, round_number, keys[s.name], nets[s.name]) for s in stages],
        )
        for s in stages:
            shop.store.keep(keys[s.name], folders[s.name])
    return {
        s.name: Trained(built[s.name], keys[s.name], load_best(as_module(nets[s.name]), folders[s.name]))
        for s in stages
    }


def _lists(
    shop: Workshop, objective: AnyObjective, before: Round, upstream: Sequence[Trained], title: str
) -> TeacherLists:
    """The lists of an objective. Raises UserError where none has two places, or no budget cuts any of them."""
    if objective.teacher is not None:
        lists = ordered_lists(shop, objective, before, upstream, title)
    else:
        lists = _logged(shop, objective, title)
    if not isinstance(objective, LCRONConfig | ARFConfig | ICCConfig):
        return lists
    assert objective.budgets is not None, "config fills them in"
    longest = lists.longest
    idle = [name for name, keep in zip(objective.stages, objective.budgets, strict=True) if keep >= longest]
    message = f"the longest list has {longest} places, and budgets = {list(objective.budgets)}"
    if len(idle) == len(objective.stages) or (idle and isinstance(objective, ARFConfig)):
        raise UserError(
            f"{objective.shown}: {message}: '{idle[0]}' would cut nothing and learn nothing; want smaller `budgets`, "
            "or longer lists"
        )
    if idle:
        shop.progress.say(f"{title}  {message}: '{idle[0]}' cuts nothing")
    return lists


def _logged(shop: Workshop, objective: ObjectiveConfig, title: str) -> TeacherLists:
    """The training rows of every request, as they were shown, or in no order where labels are the truth."""
    by_position = objective.truth == "top"
    logged = logged_lists(shop.dataset, by_position=by_position)
    depth = objective.depth_of(list_kind(shop.config, shop.dataset, objective))
    key = content_key(logged="by position" if by_position else "in no order", depth=depth, data=shop.dataset.sha256)
    lists = kept_lists(
        shop,
        key,
        logged.requests,
        lambda number_B: as_shown(logged, number_B, depth),
        logged.item_LK.shape[1],
        f"{title}  lists of the log",
    )
    if not len(lists):
        raise UserError(f"{objective.shown}: no request has two training rows to tell apart; want other `lists`")
    shop.progress.say(f"{title}  {len(lists):,} lists of the log, {lists.dropped:,} shorter than 2 left out")
    return lists
