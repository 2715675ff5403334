"""How far apart the predictions of several trainings lie: between seeds, and among peers (floor 8). M test rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cascade_kd.config import ExperimentConfig
from cascade_kd.data import Dataset
from cascade_kd.evaluate import Evaluation
from cascade_kd.evaluate.evaluation import Labelled, RowMetrics
from cascade_kd.experiment.codistill import peer_name
from cascade_kd.experiment.workshop import Round
from cascade_kd.metrics import auc, churn, logloss
from cascade_kd.stages import LogitStage, event_logits
from cascade_kd.stages.ensemble import mean_probability_logit

Tree = dict[str, Any]
Predictions = Mapping[tuple[str, ...], Tensor]  # place of a stage in the tree of a seed -> logits [M], on the CPU


def predictions_of(base: Evaluation, final: Evaluation, teachers: Mapping[str, RowMetrics]) -> Predictions:
    """What stages of the first and the last round and teachers say of the test rows, as probabilities' logits."""
    found: dict[tuple[str, ...], Tensor] = {}
    found |= {("baseline", "stages", name): logits_M for name, logits_M in base.calibrated.items()}
    found |= {("stages", name): logits_M for name, logits_M in final.calibrated.items()}
    found |= {("teachers", name): rows.calibrated_M for name, rows in teachers.items()}
    return {place: logits_M.cpu() for place, logits_M in found.items()}


def add_churn(seeds: Mapping[str, Tree], predictions: Mapping[str, Predictions]) -> None:
    """Where there are several seeds, note with every model how far it lies from the other seeds' on average."""
    if len(seeds) < 2:
        return
    for seed, tree in seeds.items():
        for path, logits_M in predictions[seed].items():
            others = [predictions[other][path] for other in seeds if other != seed]
            of_model = tree
            for key in path:
                of_model = of_model[key]
            of_model["churn"] = churn(logits_M, others).as_dict()


def codistill_metrics(
    config: ExperimentConfig, dataset: Dataset, trained: Round, labels: Mapping[str, Labelled]
) -> Tree:
    """By codistilled stage: churn between the served peer and the others; auc and logloss of the mean of all peers."""
    codistill = config.codistill
    assert codistill is not None
    name = codistill.stage
    if codistill.peer is not None:
        return {name: {"peers": codistill.peers}}  # the others are elsewhere
    rows_M = dataset.rows("test")
    logits = []
    for peer in range(codistill.peers):
        stage = trained[peer_name(name, peer)].stage
        assert isinstance(stage, LogitStage)
        logits.append(event_logits(stage, dataset, "test", rows_M))
    label_M = dataset.events.labels[labels[name].label][rows_M]
    mean_M = mean_probability_logit(torch.stack(logits).double())
    return {
        name: {
            "peers": codistill.peers,
            "churn": churn(logits[0], logits[1:]).as_dict(),
            "auc": auc(mean_M, label_M).as_dict(),
            "logloss": logloss(mean_M, label_M).as_dict(),
        }
    }
