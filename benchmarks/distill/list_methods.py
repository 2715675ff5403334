"""The distillers without logits, by name: what follows the two worlds' TOML. A method joins by one line."""

from __future__ import annotations

from dataclasses import replace

from methods import Method, World, pair

FILE, CITEULIKE = "movielens-1m-lists", "citeulike-lists"
STEP = "lists_per_step = 16\n"
ALPHAS = (0, 1, 4, 16)
KS = (10, 20, 50, 100)
DEPTH = {  # what the ranker orders, and how much of it is kept
    "recall": 'lists = "catalogue"\napproximate = true\ndepth = 100\n',
    "prerank": 'lists = "upstream"\n',
}
FIRST = {"recall": 'lists = "catalogue"\napproximate = true\n', "prerank": DEPTH["prerank"]}  # of the topk- methods

# At these the gradient of the term is about as long as that of the label after 120 steps of seed 0. A recall stage that
# learns by a softmax has no logits on the teacher's scale, so clid and kl are for the pre-ranker.
Weights = dict[str, dict[str, float]]
WEIGHTS: Weights = {
    "recall": {
        "topk-pointwise": 0.4,
        "topk-pairwise": 1,
        "topk-pairwise, lambdas": 1.5,
        "topk-listwise": 0.02,
        "topk-listwise, ListNet": 1.5,
        "topk-listwise, RankDistil": 0.1,
        "rd": 10,
        "cd": 2.5,
        "rrd": 0.03,
        "rrd + dcd": 0.04,
        "unkd": 2,
    },
    "prerank": {
        "topk-pointwise": 0.8,
        "topk-pairwise": 0.2,
        "topk-pairwise, lambdas": 0.2,
        "topk-listwise": 0.007,
        "topk-listwise, ListNet": 0.2,
        "topk-listwise, RankDistil": 0.02,
        "rd": 1,
        "cd": 0.8,
        "rrd": 0.006,
        "rrd + dcd": 0.002,
        "unkd": 0.2,
        "clid": 0.6,
        "kl over lists": 0.1,
    },
}
# The main three at equal gradients, as above, and RRD at the weight of its paper; with many lists a step at the best of
# .001, .003 and .01 on validation.
OF_CITEULIKE: Weights = {
    "recall": {
        "topk-pointwise": 0.2,
        "topk-pairwise": 0.2,
        "topk-listwise": 0.002,
        "rrd": 0.001,
        "rrd, 512 lists a step": 0.01,
    },
    "prerank": {"topk-pointwise": 0.1, "topk-pairwise": 0.4, "topk-listwise": 0.003},
}


def topk(student: str, method: str, keys: str = "", k: int = 50, alpha: float = 1.0) -> str:
    """The table of a topk- method."""
    return pair(f'{FIRST[student]}{STEP}method = "topk-{method}"\nk = {k}\nalpha = {alpha:g}\n{keys}', "rank", student)


def rrd_of_many(student: str) -> str:
    """The table of RRD with 512 lists a step; its authors' code takes those of all users of its 1,024 rows."""
    return pair(f'{DEPTH[student]}lists_per_step = 512\nmethod = "rrd"', "rank", student)


def of(student: str, weights: Weights = WEIGHTS) -> tuple[Method, ...]:
    """The methods on lists that have a weight, for one student of the ranker."""

    def listed(keys: str) -> str:
        return pair(f"{DEPTH[student]}{STEP}{keys}", "rank", student)

    def first(method: str, keys: str = "") -> str:
        return topk(student, method, keys)

    rrd = 'method = "rrd"\n'
    made = (
        Method("topk-pointwise", first("pointwise")),
        Method("topk-pairwise", first("pairwise")),
        Method("topk-pairwise, lambdas", first("pairwise", "lambdas = true")),
        Method("topk-listwise", first("listwise")),
        Method("topk-listwise, ListNet", first("listwise", 'loss = "listnet"')),
        Method("topk-listwise, RankDistil", first("listwise", 'loss = "rankdistil"')),
        Method("rd", listed('method = "rd"\nhybrid_from = 3')),
        Method("cd", listed('method = "cd"')),
        Method("rrd", listed(rrd)),
        Method("rrd, 512 lists a step", rrd_of_many(student)),
        Method("rrd + dcd", listed(rrd) + listed('method = "dcd"')),
        Method("unkd", listed('method = "unkd"')),
        Method("clid", listed('method = "logit"\nloss = "clid"')),
        Method("kl over lists", listed('method = "logit"\nloss = "kl"')),
    )
    return tuple(replace(m, chosen=weights[student][m.name]) for m in made if m.name in weights[student])


def alphas_and_ks(student: str) -> tuple[Method, ...]:
    """Position weights and lengths of the teacher's list, one changed at a time."""
    points = [("alpha", alpha, 50, alpha) for alpha in ALPHAS] + [("K", k, k, 1.0) for k in KS]
    weight = WEIGHTS[student]["topk-pointwise"]
    return tuple(
        Method(f"{what} = {value:g}", topk(student, "pointwise", k=k, alpha=alpha), weight)
        for what, value, k, alpha in points
    )


SWEEP = World("alpha-and-k", "prerank", "rank", alphas_and_ks("prerank"), FILE)  # one seed
REFRESHED = ("topk-pairwise", "topk-listwise", "rrd")
# A round hands its lists to the next: the later stages of round 2 learn on those of the student of round 1.
FRESH = ("rounds=2", "stage.prerank.refresh=true", "stage.rank.refresh=true")
LIST_WORLDS = (
    *(World(f"{student}-lists", student, "rank", of(student), FILE) for student in ("prerank", "recall")),
    World(
        "recall-lists-refreshed",
        "recall",
        "rank",
        tuple(replace(method, settings=FRESH) for method in of("recall") if method.name in REFRESHED),
        FILE,
    ),
    *(World(f"{student}-citeulike", student, "rank", of(student, OF_CITEULIKE), CITEULIKE) for student in DEPTH),
)
