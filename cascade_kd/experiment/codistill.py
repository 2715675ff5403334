"""A codistilled stage: its peers, trained together in this process or one of them alone (floor 8)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cascade_kd.config import ExperimentConfig, StageConfig
from cascade_kd.experiment.nets import Net, net_of
from cascade_kd.experiment.store import content_key
from cascade_kd.experiment.training import (
    about_training,
    as_module,
    as_stage,
    new_net,
    plain_task,
    restore,
    setting,
    stage_content,
    stream_seed,
)
from cascade_kd.experiment.upstream import read_lists_key
from cascade_kd.experiment.workshop import Round, Trained, Workshop, stages_before
from cascade_kd.serve import prove_availability
from cascade_kd.stages import RetrievalStage, ScoringStage
from cascade_kd.streams import stream
from cascade_kd.train import load_best
from cascade_kd.train.codistill import codistill_term, peers_as_teacher, share_of_rows, take_turns
from cascade_kd.train.codistill_settings import CodistillConfig
from cascade_kd.train.exchange import Exchange
from cascade_kd.train.loop import fit_in_turns

EXCHANGE = "exchange"  # in the run directory, where all peers are trained in one process
COPIES = "peers"  # in a peer's folder: the weights of the others that it uses
OF_ONE_PROCESS = {"peer", "shared", "wait_seconds"}  # keys in which the processes of one training differ


def peer_name(stage: str, peer: int) -> str:
    """How a round calls a peer; the first has the stage's own name, and no stage can have those of the others."""
    return f"{stage}.peer{peer}" if peer else stage


def is_codistilled(config: ExperimentConfig, stage: StageConfig) -> bool:
    """Whether ``[codistill]`` names the stage."""
    return config.codistill is not None and config.codistill.stage == stage.name


def train_peers(shop: Workshop, seed: int, round_number: int, stage: StageConfig, before: Round) -> Round:
    """Train the peers of a stage, and return the one that is served under the stage's name, the others under theirs.

    With ``[codistill] peer`` it is that one alone, and the others are elsewhere. Peer 0 has the streams of the stage
    itself: with weight 0 and ``data = "same"`` it is the stage of round 0 bit for bit. Every other peer draws from
    streams of its own.
    """
    config = shop.config.codistill
    assert config is not None
    upstream = stages_before(shop.config, stage, before)
    lists_key = read_lists_key(shop, stage, upstream)
    alone = config.peer is not None
    stages = {peer: replace(stage, name=peer_name(stage.name, peer)) for peer in range(config.peers)}
    served = {config.peer: stage} if config.peer is not None else stages
    group = {
        "stage": stage_content(stage, taught=True),
        "lists": lists_key,
        "codistill": config.model_dump(exclude=OF_ONE_PROCESS),
    }
    key = content_key(**group, **setting(shop, seed, round_number, stage))
    keys = {peer: content_key(group=key, peer=peer) for peer in served}
    folders = {peer: shop.folder(seed, round_number, of.name) for peer, of in served.items()}
    if not alone and all(shop.store.holds(key) for key in keys.values()):
        for peer, of in served.items():
            restore(shop, keys[peer], folders[peer], of.name, seed, round_number)
    streams = stream_seed(seed, round_number, stage)
    if config.shared is None:
        meeting = shop.out / EXCHANGE / str(seed) / str(round_number) / stage.name
    else:  # peers find each other by what they train, and by nothing of their machines
        meeting = Path(config.shared) / content_key(**group, data=shop.dataset.sha256, streams=streams)
    built: dict[int, RetrievalStage | ScoringStage] = {}
    trainings = []
    for peer, of in served.items():
        net = new_net(shop, seed, round_number, stages[peer])
        built[peer] = as_stage(of, net.model, net.features, shop.dataset)
        prove_availability(built[peer])
        task = plain_task(shop, seed, round_number, stages[peer], net, upstream)
        if config.data == "disjoint":
            assert task.rows_M is not None, "config refuses shares of a stream"
            task = replace(task, rows_M=share_of_rows(task.rows_M, peer, config.peers, stream(streams, "shares")))
        about = about_training(of.name, seed, round_number, keys[peer], net)
        others = {other: new_net(shop, seed, round_number, stages[other]) for other in stages if other != peer}
        exchange = _exchange(shop, config, meeting, peer, others, folders[peer] / COPIES, about)
        teacher = peers_as_teacher({other: net.model for other, net in others.items()}, exchange, net.features)
        task = replace(
            task,
            stage=of.name,
            terms=(codistill_term(config, exchange),),
            label_weight=stage.label_weight,
            teachers=(teacher,),
            exchange=exchange,
        )
        trainings.append(fit_in_turns(task, folders[peer], shop.progress, about=about))
    take_turns(trainings)
    trained: Round = {}
    for peer, of in served.items():
        curve = load_best(as_module(net_of(built[peer])), folders[peer])
        if not alone:  # a run among others does not repeat itself, unless all goes well
            shop.store.keep(keys[peer], folders[peer])
        trained[of.name] = Trained(built[peer], keys[peer], curve)
    return trained


def _exchange(
    shop: Workshop,
    config: CodistillConfig,
    meeting: Path,
    peer: int,
    others: Mapping[int, Net],
    copies: Path,
    about: dict[str, Any],
) -> Exchange:
    title = shop.progress.title(about["stage"], about)
    return Exchange(
        meeting,
        peer,
        {other: as_module(net) for other, net in others.items()},
        copies,
        lambda text: shop.progress.say(f"{title}  {text}"),
        every=config.exchange_steps,
        first=config.burn_in_steps,
        in_step=config.peer is None or config.wait_seconds > 0,
        wait_seconds=config.wait_seconds,
    )
