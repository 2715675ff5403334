"""Rounds of training: every stage undistilled, then every student with its distillers (floor 8)."""

from __future__ import annotations

from cascade_kd.config import ExperimentConfig, TeacherConfig
from cascade_kd.experiment.codistill import is_codistilled, train_peers
from cascade_kd.experiment.joint import train_group
from cascade_kd.experiment.objectives import train_objective
from cascade_kd.experiment.store import content_key
from cascade_kd.experiment.training import train_stage
from cascade_kd.experiment.workshop import Round, Trained, Workshop, stages_before
from cascade_kd.stages import ColumnStage, EnsembleStage, LogitStage


def train_rounds(shop: Workshop, seed: int) -> list[Round]:
    """Round 0, then ``rounds`` more if anything is to be trained again; each holds stages and teachers by name.

    Round 0 trains every stage without distillers, each on the lists of the one before, then the teachers, on the lists
    that the last stage receives. A later round trains every student (and every stage with ``refresh``) from a fresh
    start of the same seed; teachers and upstream lists are those of the round before. A joint pair trains a fresh
    teacher with its students; the round holds it under :func:`joint_name`. The stages of an objective are trained
    together.
    """
    config = shop.config
    first: Round = {}
    for stage in config.stages:
        first[stage.name] = train_stage(shop, seed, 0, stage, list(first.values()), {})
    for teacher in config.teachers:
        if _teaches_alone(config, teacher.name):
            first[teacher.name] = _train_teacher(shop, seed, teacher, first)
    rounds = [first]
    objectives = {name: objective for objective in config.objectives for name in objective.stages}
    again = [
        s
        for s in config.stages
        if s.refresh
        or s.name in objectives
        or is_codistilled(config, s)
        or any(d.student == s.name for d in config.distill)
    ]
    for number in range(1, config.rounds + 1 if again else 1):
        before = rounds[-1]
        after = {name: trained for name, trained in before.items() if "." not in name}  # joint teachers, peers
        done: set[str] = set()
        for stage in again:
            if stage.name in done:
                continue
            joint = [d.teacher for d in config.distill if d.student == stage.name and d.mode == "joint"]
            if is_codistilled(config, stage):
                after |= train_peers(shop, seed, number, stage, before)
            elif stage.name in objectives:
                group = train_objective(shop, seed, number, objectives[stage.name], before)
                after |= group
                done |= set(group)
            elif joint:
                group = train_group(shop, seed, number, joint[0], before)
                after |= group
                done |= set(group)
            else:
                upstream = stages_before(config, stage, before)
                after[stage.name] = train_stage(shop, seed, number, stage, upstream, before)
        rounds.append(after)
    return rounds


def _teaches_alone(config: ExperimentConfig, name: str) -> bool:
    """Whether a teacher has to be complete before its students: it teaches offline, orders lists, is in an ensemble."""
    in_ensemble = any(name in teacher.members for teacher in config.teachers)
    asked = [d.teacher for d in config.distill if d.mode == "offline"] + [o.teacher for o in config.objectives]
    return in_ensemble or name in asked


def _train_teacher(shop: Workshop, seed: int, teacher: TeacherConfig, there: Round) -> Trained:
    if teacher.column is not None:
        column = ColumnStage(teacher.name, shop.dataset, teacher.column, teacher.scores)
        return Trained(column, content_key(column=teacher.column, scores=teacher.scores, data=shop.dataset.sha256))
    upstream = [there[stage.name] for stage in shop.config.stages[:-1]]
    copies = [train_stage(shop, seed, 0, stage, upstream, {}) for stage in teacher.stages]
    members = [*copies, *(_member(shop, seed, name, there) for name in teacher.members)]
    if len(members) == 1:
        return members[0]
    stages = []
    for member in members:
        assert isinstance(member.stage, LogitStage), "config refuses members without logits"
        stages.append(member.stage)
    return Trained(EnsembleStage(teacher.name, tuple(stages)), content_key(members=[m.key for m in members]))


def _member(shop: Workshop, seed: int, name: str, there: Round) -> Trained:
    """A member of an ensemble; one whose table stands further down is trained now, and is in the store then."""
    if name in there:
        return there[name]
    return _train_teacher(shop, seed, next(t for t in shop.config.teachers if t.name == name), there)
