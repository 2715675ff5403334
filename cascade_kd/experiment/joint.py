"""One teacher and its students, trained in the same steps (floor 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from cascade_kd.config import ExperimentConfig, StageConfig
from cascade_kd.config.tables import DistillConfig
from cascade_kd.distill import LayersConfig
from cascade_kd.distill.pair import joint_name
from cascade_kd.errors import UserError
from cascade_kd.experiment.lessons import hint_epochs, live_layers, make_lessons, student_of
from cascade_kd.experiment.lists import list_terms, order_keys
from cascade_kd.experiment.nets import Net, net_of
from cascade_kd.experiment.store import content_key
from cascade_kd.experiment.training import (
    about_training,
    as_module,
    as_stage,
    cached_logits,
    new_net,
    plain_task,
    restore,
    setting,
    stage_content,
)
from cascade_kd.experiment.transfer import make_transfer, transfer_content
from cascade_kd.experiment.upstream import read_lists_key, received_from
from cascade_kd.experiment.workshop import Round, Trained, Workshop, stages_before
from cascade_kd.models.sharing import settle, share
from cascade_kd.serve import prove_availability
from cascade_kd.train import (
    Checkpoint,
    LiveTeacher,
    Task,
    fit,
    is_finished,
    load_best,
    load_checkpoint,
    save_checkpoint,
)
from cascade_kd.train.distributed import rank
from cascade_kd.train.state import BESIDE_FILE, BEST_FILE


def group_of(shop: Workshop, teacher: str) -> list[StageConfig]:
    """The students of a joint teacher, in the order of the cascade."""
    names = {d.student for d in shop.config.distill if d.mode == "joint" and d.teacher == teacher}
    return [stage for stage in shop.config.stages if stage.name in names]


def teacher_config(shop: Workshop, name: str) -> StageConfig:
    """The stage or teacher of that name as something to train."""
    found = [s for s in shop.config.stages if s.name == name]
    found += [t.model for t in shop.config.teachers if t.name == name and t.model is not None]
    return found[0]


def train_group(shop: Workshop, seed: int, round_number: int, teacher_name: str, before: Round) -> Round:
    """Train a teacher and all its joint students in one run; each student as a stage, and the teacher.

    All see the batches of the first student. A student is saved and served alone: what it shares lies with it, and of
    several students that share, every one gets its own copy in the end. Then the teacher goes on alone, if asked to.
    """
    config, dataset = shop.config, shop.dataset
    students = group_of(shop, teacher_name)
    stage = students[0]
    earlier = {s.name: stages_before(config, s, before) for s in students}
    upstream = earlier[stage.name]
    pairs = {s.name: [d for d in config.distill if d.student == s.name] for s in students}
    teaching = teacher_config(shop, teacher_name)
    lists_key = read_lists_key(shop, stage, upstream)
    every = [d for of in pairs.values() for d in of]
    offline = [d for d in every if d.mode == "offline"]
    key = content_key(
        group=[stage_content(s, taught=True) for s in students],
        teacher=stage_content(teaching, taught=False),
        lists=[read_lists_key(shop, replace(s, train=stage.train), earlier[s.name]) for s in students],
        distill=[[d.model_dump() for d in of] for of in pairs.values()],
        ordered=[order_keys(shop, pairs[s.name], before, earlier[s.name]) for s in students],
        transfer=transfer_content(shop, every),
        offline=[before[d.teacher].key for d in offline],
        **setting(shop, seed, round_number, stage),
    )
    nets = {s.name: new_net(shop, seed, round_number, s) for s in students}
    teacher = new_net(shop, seed, round_number, teaching)
    for of in students:
        prove_availability(as_stage(of, nets[of.name].model, nets[of.name].features, dataset))
    share_all(nets, teacher, every)
    task = plain_task(shop, seed, round_number, stage, nets[stage.name], upstream)
    title = shop.progress.title(stage.name, {"seed": seed, "round": round_number})
    task = _group_task(shop, task, students, nets, (teaching, teacher), pairs, before, earlier, lists_key, title)
    folder = shop.folder(seed, round_number, stage.name)
    restore(shop, key, folder, stage.name, seed, round_number)
    if is_finished(folder):
        curve = load_best(as_module(nets[stage.name]), folder)
        assert task.beside is not None
        task.beside.load_state_dict(dict(load_checkpoint(folder / BESIDE_FILE).model), strict=False)
    else:
        about = about_training(stage.name, seed, round_number, key, nets[stage.name])
        curve = fit(task, folder, shop.progress, about=about)
        shop.store.keep(key, folder)
    group: Round = {}
    for net in (teacher, *nets.values()):
        settle(as_module(net))
    alone = max(pair.teacher_epochs for pair in every)
    if alone:
        _go_on_alone(shop, seed, round_number, teaching, teacher, before, alone, key)
    for name, config_of, net in (
        *((s.name, s, nets[s.name]) for s in students),
        (joint_name(teacher_name), teaching, teacher),
    ):
        own_key = content_key(group=key, net=name)
        own = shop.folder(seed, round_number, name)
        if rank() == 0 and not (own / BEST_FILE).exists():  # the first student's was written as it learnt
            about = about_training(name, seed, round_number, own_key, net)
            save_checkpoint(own / BEST_FILE, Checkpoint(as_module(net).state_dict(), about))
        group[name] = Trained(
            as_stage(config_of, net.model, net.features, dataset), own_key, curve if name in nets else ()
        )
    return group


def _go_on_alone(
    shop: Workshop,
    seed: int,
    round_number: int,
    teaching: StageConfig,
    teacher: Net,
    before: Round,
    epochs: int,
    group_key: str,
) -> None:
    """Train a joint teacher on, from where its students left it: on its own label and rows, by a fresh optimiser.

    What it shared is its own by now, so no student changes.
    """
    assert teaching.train is not None, "config refuses a model without [train]"
    stages = shop.config.stages
    served = stages.index(teaching) if teaching in stages else len(stages) - 1
    upstream = [before[s.name] for s in stages[:served]]
    lists_key = read_lists_key(shop, teaching, upstream)
    name = joint_name(teaching.name)
    longer = replace(teaching, train=teaching.train.model_copy(update={"epochs": epochs}))
    task = plain_task(shop, seed, round_number, longer, teacher, upstream)
    key = content_key(group=group_key, lists=lists_key, alone=epochs)
    folder = shop.folder(seed, round_number, name)
    restore(shop, key, folder, name, seed, round_number)
    if is_finished(folder):
        load_best(as_module(teacher), folder)
        return
    about = about_training(name, seed, round_number, key, teacher)
    fit(replace(task, stage=name), folder, shop.progress, about=about)
    shop.store.keep(key, folder)


def _group_task(
    shop: Workshop,
    task: Task,
    students: Sequence[StageConfig],
    nets: Mapping[str, Net],
    teaching: tuple[StageConfig, Net],
    pairs: Mapping[str, Sequence[DistillConfig]],
    before: Round,
    earlier: Mapping[str, Sequence[Trained]],
    lists_key: str,
    title: str,
) -> Task:
    """The first student's training with the teacher and the other students in it."""
    every = [d for of in pairs.values() for d in of]
    first = students[0]
    transfer = make_transfer(shop, task, every, before)
    task = replace(task, pairs=transfer.pairs, munged=transfer.inputs)
    sources = {
        d.source: teaching[1] if d.mode == "joint" else net_of(before[d.teacher].stage)
        for d in every
        if d.mode == "joint" or isinstance(d, LayersConfig)
    }
    lessons = {
        s.name: make_lessons(
            s,
            nets[s.name],
            pairs[s.name],
            sources,
            cached_logits(shop, task, pairs[s.name], before, lists_key),
            shop.dataset,
            task.seed,
            munged=transfer.logits(pairs[s.name], before),
            on_lists=list_terms(shop, task, nets[s.name], pairs[s.name], before, earlier[s.name], title),
        )
        for s in students
    }
    received_by_others = [received_from(shop, replace(s, train=first.train), earlier[s.name]) for s in students[1:]]
    beside = nn.ModuleDict({"teacher": as_module(teaching[1])})
    for s in students:
        if len(lessons[s.name].adapters):
            beside[f"adapters_{s.name}"] = lessons[s.name].adapters
        if s is not first:
            beside[f"student_{s.name}"] = as_module(nets[s.name])
    return replace(
        task,
        terms=lessons[first.name].terms,
        balance=lessons[first.name].balance,
        label_weight=first.label_weight,
        others=tuple(
            student_of(s, nets[s.name], lessons[s.name], received)
            for s, received in zip(students[1:], received_by_others, strict=True)
        ),
        teachers=tuple(
            LiveTeacher(
                name,
                net.model,
                net.features,
                live_layers(every, name),
                teaching[0].train if net is teaching[1] else None,
            )
            for name, net in sources.items()
        ),
        beside=beside,
        hint_epochs=hint_epochs(every),
    )


def share_all(nets: Mapping[str, Net], teacher: Net, pairs: Sequence[DistillConfig]) -> None:
    """Let the teacher, and later students, use what their pairs share with the first student that shares.

    Raises UserError with the pair whose modules cannot be shared.
    """
    joint = [pair for pair in pairs if pair.mode == "joint"]
    shared = {name: list(dict.fromkeys(m for p in joint if p.student == name for m in p.share)) for name in nets}
    sharers = [name for name, modules in shared.items() if modules]
    for name in sharers:
        of_pairs = [pair for pair in joint if pair.student == name]
        unshared = sorted({x.removeprefix("embedding.") for pair in of_pairs for x in pair.unshared})
        lender = nets[sharers[0]]
        borrower = teacher if nets[name] is lender else nets[name]
        try:
            share(as_module(borrower), as_module(lender), shared[name], unshared)
        except UserError as error:
            raise UserError(f"distill {of_pairs[0].name}: {error}") from error


def check_sharing(config: ExperimentConfig, nets: Mapping[str, Net]) -> None:
    """Refuse modules that cannot be shared before anything is trained; ``nets`` are used up. Raises UserError."""
    for teacher in dict.fromkeys(pair.teacher for pair in config.distill if pair.mode == "joint"):
        pairs = [pair for pair in config.distill if pair.mode == "joint" and pair.teacher == teacher]
        students = {
            stage.name: nets[stage.name] for stage in config.stages if any(p.student == stage.name for p in pairs)
        }
        share_all(students, nets[teacher], pairs)
