"""By hand with pandas: read, encode, split, pad, shuffle, gather. What an engineer in a hurry for speed would write."""

from __future__ import annotations

from collections.abc import Iterator

import clock
import numpy as np
import pandas as pd
import raw
import torch
from torch import Tensor

LENGTH = clock.HISTORY_LENGTH


def codes(values: pd.Series) -> tuple[Tensor, pd.Index]:
    """Codes from 1 in sorted order, and the values behind them; 0 is left for padding."""
    codes_N, known = pd.factorize(values, sort=True)
    return torch.from_numpy(codes_N.astype(np.int64) + 1), pd.Index(known)


def attribute(values: pd.Series) -> Tensor:
    """The codes of one row a user or item; row 0 is the unknown."""
    return torch.cat([torch.zeros(1, dtype=torch.int64), codes(values)[0]])


def tags(values: pd.Series) -> Tensor:
    """[rows + 1, T] codes of ``A|B|C``, padded with 0."""
    exploded = values.str.split("|").explode()
    width_N = exploded.groupby(level=0).size().to_numpy()
    place_E = np.arange(len(exploded)) - np.repeat(width_N.cumsum() - width_N, width_N)
    codes_NT = np.zeros((len(values) + 1, width_N.max()), np.int64)
    codes_NT[exploded.index.to_numpy() + 1, place_E] = codes(exploded)[0].numpy()
    return torch.from_numpy(codes_NT)


def main() -> None:
    clock.imported()
    options = clock.options(__doc__)
    ratings = raw.in_time_order(raw.read_ratings(options.data))
    part_N = raw.parts(ratings)
    user_N, user_ids = codes(ratings["user"])
    items = raw.read_items(options.data).sort_values("item", ignore_index=True)
    users = raw.read_users(options.data).set_index("user").loc[user_ids].reset_index()
    item_N = torch.from_numpy(np.searchsorted(items["item"].to_numpy(), ratings["item"].to_numpy()) + 1)
    label_N = torch.from_numpy((ratings["rating"].to_numpy() >= 4).astype(np.float32))
    user_columns = {name: attribute(users[name]) for name in ("sex", "age", "occupation")}
    item_columns = {"genres": tags(items["genres"]), "year": attribute(items["year"])}
    train_M = torch.from_numpy(np.flatnonzero(part_N == 0))
    if options.history:
        # rows are sorted by (user, time): the user's earlier events are the rows just before, those of the same
        # second left out
        new_user = np.diff(user_N.numpy(), prepend=0) != 0
        new_second = new_user | (np.diff(ratings["time"].to_numpy(), prepend=-1) != 0)
        rows_N = np.arange(len(ratings))
        start_N = torch.from_numpy(np.maximum.accumulate(np.where(new_user, rows_N, 0)))
        before_N = torch.from_numpy(np.maximum.accumulate(np.where(new_second, rows_N, 0)))

    def epoch() -> Iterator[dict[str, Tensor]]:
        order_M = train_M[torch.randperm(len(train_M))]
        for rows_B in order_M.split(options.batch_size):
            user_B, item_B = user_N[rows_B], item_N[rows_B]
            batch = {"user": user_B, "item": item_B, "label": label_N[rows_B]}
            batch |= {name: column[user_B] for name, column in user_columns.items()}
            batch |= {name: column[item_B] for name, column in item_columns.items()}
            if options.history:
                earlier_BL = before_N[rows_B].unsqueeze(1) - torch.arange(1, LENGTH + 1)
                known_BL = earlier_BL >= start_N[rows_B].unsqueeze(1)
                batch["history"] = item_N[earlier_BL.clamp(min=0)].masked_fill(~known_BL, 0)
            yield batch

    clock.finish(epoch, ["pandas", "numpy", "torch"])


if __name__ == "__main__":
    main()
