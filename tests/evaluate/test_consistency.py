"""Agreement of neighbouring stages and recall by popularity, against SciPy and by hand."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import kendalltau

from cascade_kd.data import Dataset, evaluation_requests
from cascade_kd.evaluate import consistency
from cascade_kd.evaluate.consistency import agreement, popularity_of, recall_by_popularity
from cascade_kd.metrics import hits
from cascade_kd.types import Candidates


def orders(lists: int, width: int) -> tuple[Candidates, Candidates]:
    """Two orders of the same items, with ties and padding."""
    generator = torch.Generator().manual_seed(4)
    item = torch.stack([torch.randperm(50, generator=generator)[:width] + 1 for _ in range(lists)])
    item[:, -1] = torch.where(torch.arange(lists) % 2 > 0, item[:, -1], 0)
    scores = torch.randint(0, 6, (2, lists, width), generator=generator).float()
    return Candidates.ranked(item, scores[0]), Candidates.ranked(item, scores[1])


def test_agreement_is_scipys_tau_and_the_share_of_common_items() -> None:
    one, other = orders(7, 9)
    tree = agreement(one, other, 3)
    taus, overlaps = [], []
    for a, b in ((one[slice(i, i + 1)], other[slice(i, i + 1)]) for i in range(7)):
        of_a, of_b = (dict(zip(x.item_BK[0].tolist(), x.score_BK[0].tolist(), strict=True)) for x in (a, b))
        items = [item for item in of_a if item]
        taus.append(kendalltau([of_a[i] for i in items], [of_b[i] for i in items]).statistic)
        overlaps.append(len(set(a.item_BK[0, :3].tolist()) & set(b.item_BK[0, :3].tolist())) / 3)
    assert tree["tau"]["mean"] == pytest.approx(sum(taus) / 7)
    assert tree["overlap@3"]["mean"] == pytest.approx(sum(overlaps) / 7)
    assert agreement(one, one, 3)["tau"]["mean"] == pytest.approx(1.0)
    assert "overlap@9" in agreement(one, other, 99)


def test_tau_of_many_long_lists_is_of_some_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = orders(7, 9)
    monkeypatch.setattr(consistency, "PAIRS", 3 * 9 * 9)
    tree = agreement(one, other, 3)
    every_third = agreement(one[torch.tensor([0, 3, 6])], other[torch.tensor([0, 3, 6])], 3)
    assert tree["tau"] == every_third["tau"]
    assert tree["tau"]["n"] == 3
    assert tree["overlap@3"]["n"] == 7


def test_recall_by_popularity_adds_up_to_the_recall_of_all(dataset: Dataset) -> None:
    asked = evaluation_requests(dataset, "test", "click")
    item = torch.arange(1, 21).expand(len(asked.requests), -1)
    kept = Candidates.ranked(item, torch.zeros(item.shape))
    hit = hits(kept.item_BK, kept.valid_BK, asked.offsets_B1, asked.positive_P)
    group = popularity_of(dataset)
    tree = recall_by_popularity(kept, hit, asked, group)
    counts = torch.bincount(dataset.events.item_N[dataset.rows("train")], minlength=dataset.num_items + 1)
    mass = [int(counts[1:][group[1:] == g].sum()) for g in range(4)]
    assert max(mass) - min(mass) < 2 * int(counts.max())
    assert counts[1:][group[1:] == 0].min() >= counts[1:][group[1:] == 3].max()
    for number in range(4):
        shares = []
        for row in range(len(asked.requests)):
            own = asked.positive_P[asked.offsets_B1[row] : asked.offsets_B1[row + 1]]
            own = own[group[own] == number]
            if len(own):
                shares.append(float((own <= 20).double().mean()))
        assert tree[str(number + 1)]["mean"] == pytest.approx(sum(shares) / len(shares))
        assert tree[str(number + 1)]["n"] == len(shares)
