"""The distillers without logits, by name: what follows movielens-1m-lists.toml. A method joins by one line."""

from __future__ import annotations

from methods import Method, World, pair

STEP = "lists_per_step = 16\n"
DEPTH = {  # what the ranker orders, and how much of it is kept
    "recall": 'lists = "catalogue"\napproximate = true\ndepth = 100\n',
    "prerank": 'lists = "upstream"\n',
}
FIRST = {"recall": 'lists = "catalogue"\napproximate = true\n', "prerank": DEPTH["prerank"]}  # of the topk- methods


def of(student: str) -> tuple[Method, ...]:
    """Every method on lists, for one student of the ranker."""

    def listed(keys: str, kind: dict[str, str] = DEPTH, weight: str = "WEIGHT") -> str:
        return pair(f"{kind[student]}{STEP}{keys}", "rank", student, weight)

    def first(method: str, keys: str = "", k: int = 50, alpha: float = 1.0) -> str:
        return listed(f'method = "topk-{method}"\nk = {k}\nalpha = {alpha}\n{keys}', FIRST)

    rrd = 'method = "rrd"\n'
    logits = (  # which a recall stage that learns by a softmax over items has not on the teacher's scale
        Method("clid", listed('method = "logit"\nloss = "clid"')),
        Method("kl over lists", listed('method = "logit"\nloss = "kl"')),
    )
    return (
        Method("topk-pointwise", first("pointwise")),
        Method("topk-pairwise", first("pairwise")),
        Method("topk-pairwise, lambdas", first("pairwise", "lambdas = true")),
        Method("topk-listwise", first("listwise")),
        Method("topk-listwise, ListNet", first("listwise", 'loss = "listnet"')),
        Method("topk-listwise, RankDistil", first("listwise", 'loss = "rankdistil"')),
        Method("rd", listed('method = "rd"\nhybrid_from = 3')),
        Method("cd", listed('method = "cd"')),
        Method("rrd", listed(rrd)),
        Method("rrd + dcd", listed(rrd) + listed('method = "dcd"')),
        Method("unkd", listed('method = "unkd"')),
        *(logits if student != "recall" else ()),
    )


LIST_WORLDS = tuple(
    World(f"{student}-lists", student, "rank", of(student), "movielens-1m-lists") for student in ("recall", "prerank")
)
