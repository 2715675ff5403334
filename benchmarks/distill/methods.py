"""The distillers of the tables, by name: what is appended to the TOML of a world's undistilled experiment.

A method joins by one line. ``WEIGHT`` stands for the weight: ``chosen``, the one of ``weights`` that ``sweep.py`` finds
best by the validation AUC of seed 0, once it was run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent

LOGIT = 'method = "logit"\n'
LAYERS = 'layers = [["mlp.1", "user.vector"], ["mlp.1", "item.vector"]]\n'
HIDDEN = 'method = "hidden"\n' + LAYERS
JOINT = 'mode = "joint"\n'
SHARED = JOINT + 'share = ["embedding"]\n'
BUT_USERS = SHARED + 'except = ["embedding.user_id"]\n'

STATES = (0.001, 0.01, 0.1)


@dataclass(frozen=True)
class Method:
    """A row of a table: the TOML tables of a distilled student, and settings laid over the rest."""

    name: str
    tables: str
    chosen: float = 0.5
    weights: tuple[float, ...] = ()
    settings: tuple[str, ...] = ()

    def toml(self, weight: float) -> str:
        """The tables at a weight."""
        return self.tables.replace("WEIGHT", f"{weight:g}")


@dataclass(frozen=True)
class World:
    """An undistilled experiment, the student that is measured and the teacher that recovery counts from."""

    name: str
    student: str
    teacher: str
    methods: tuple[Method, ...]
    file: str = ""
    """Its TOML, unless that has the world's name."""

    def text(self) -> str:
        """The experiment without its bands, which are of another run; a data set beside it by its full path."""
        text = (HERE / f"{self.file or self.name}.toml").read_text("utf-8").partition("\n[expected")[0]
        return text.replace('dataset = "world-data.toml"', f'dataset = "{HERE / "world-data.toml"}"')


def pair(keys: str, teacher: str = "rank", student: str = "prerank", weight: str = "WEIGHT") -> str:
    """One ``[[distill]]`` table."""
    return f'\n[[distill]]\nteacher = "{teacher}"\nstudent = "{student}"\nweight = {weight}\n{keys.strip()}\n'


def big(name: str, keys: str) -> str:
    """One ``[[teacher]]``, a DCN-V2 trained as the ranker of movielens-1m.toml is, but for ``keys``."""
    return f'''
[[teacher]]
name = "{name}"
use = "rank/dcnv2"
model.embedding_size = 16
model.cross_layers = 1
{keys.strip()}
[teacher.train]
samples = [{{ from = "impressions" }}]
learning_rate = 8e-3
embedding_l2 = 1e-4
plateau_factor = 0.3
milestones = [10]
epochs = 12
patience = 0
'''


FEATURES = '"user_id", "item_id", "sex", "age", "occupation", "region", "genres", "year"'
STATISTICS = '"user_genre_like_rate", "user_genre_count", "item_like_rate", "item_count", "user_like_rate"'
ALL = f"features = [{FEATURES}, {STATISTICS}]\n"
WIDE = "model.hidden = [400, 200]\n"
REST = ('stage.prerank.label_weight="rest"',)
BCE = LOGIT + 'loss = "bce"\n'
KL = LOGIT + 'loss = "kl"\n'
MSE = LOGIT + 'loss = "mse"\n'
COPIES = '\n[transfer]\nmethod = "{}"\ncopies = 1\n'

MOVIELENS = (
    Method("bce, label weight rest (PFD)", pair(BCE), weights=(0.1, 0.5, 0.9), settings=REST),
    Method("kl, T = 2", pair(KL + "temperature = 2.0"), 1, (0.5, 1, 2)),
    Method("mse", pair(MSE), 0.1, (0.1, 0.5)),
    Method("mimic, no label", pair(LOGIT + 'loss = "mimic"'), 1, settings=("stage.prerank.label_weight=0.0",)),
    Method("auxiliary head", pair(KL + 'head = "auxiliary"\nlayer = "item.vector"'), 0.5, (0.5, 2)),
    Method("kl", pair(KL), 1, (0.5, 1, 2)),
    Method("kl, T = 4", pair(KL + "temperature = 4.0"), 1, (0.5, 1, 2)),
    Method("prob-mse", pair(LOGIT + 'loss = "prob-mse"'), 4, (1, 4)),
    Method("kl, label weight learned", pair(KL), 1, settings=('stage.prerank.label_weight="learned"',)),
    Method("bce, rest, transfer pairs", pair(BCE) + COPIES.format("pairs"), weights=(0.5, 0.9), settings=REST),
    Method("bce, rest, munged rows", pair(BCE) + COPIES.format("munge"), settings=REST),
    Method("hint, linear", pair(HIDDEN + 'projector = "linear"'), 0.01, STATES),
    Method(
        "hint, then kl (FitNets)",
        pair(HIDDEN + 'projector = "linear"\nphases = ["hint", "full"]', weight="1.0")
        + pair(KL + 'schedule = "linear"\nend_weight = 0.25'),
        4,
        (1, 4),
    ),
    Method("attention", pair('method = "hidden"\nlayers = [["mlp.1", "item.mlp.0"]]\nloss = "attention"'), 0.1, STATES),
    Method("experts (DE)", pair(HIDDEN + 'projector = "experts"\nexperts = 5'), 0.01, STATES),
    Method("relation (FTD)", pair('method = "relation"\n' + LAYERS), 0.1, (0.01, 0.1, 1)),
    Method("rocket", pair(MSE + SHARED), 0.1, (0.1, 0.5)),
    Method(
        "dual DNN",
        pair(MSE + SHARED) + pair(HIDDEN + 'projector = "linear"\n' + SHARED, weight="0.01"),
        0.1,
    ),
    Method("PFD in one run", pair(BCE + "warmup_steps = 200\n" + BUT_USERS), settings=REST),
    Method(
        "bce, rest, LUPI",
        big("stats", f'level = "rank"\nfeatures = [{STATISTICS}]') + pair(BCE, "stats"),
        settings=REST,
    ),
    Method(
        "bce, rest, MD",
        big("md", f'level = "prerank"\nfeatures = [{FEATURES}]\n{WIDE}') + pair(BCE, "md"),
        settings=REST,
    ),
    Method("bce, rest, PFD + MD", big("both", f'level = "rank"\n{ALL}{WIDE}') + pair(BCE, "both"), settings=REST),
    Method(
        "bce, rest, three rankers",
        big("three", f'level = "rank"\ncopies = 3\n{ALL}') + pair(BCE, "three"),
        settings=REST,
    ),
)

AFTER = """
[[teacher]]
name = "after"
use = "rank/dnn"
level = "never"
{model}
[teacher.train]
{train}
"""
RANK_REST = ('stage.rank.label_weight="rest"',)
CLICK = """label = "click"
samples = [{ from = "impressions" }]
learning_rate = 4e-3
embedding_l2 = 1e-3
plateau_factor = 0.3
epochs = 12"""
CART = """label = "cart"
samples = [{ from = "impressions" }]
batch_size = 512
learning_rate = 1e-3
embedding_l2 = 1e-3
epochs = 30
patience = 4"""
DWELL = AFTER.format(model="model.hidden = [64, 32]", train=CLICK)
SESSION = '"entry", "session_category_views", "product_views", "product_cart_rate", "product_detail_rate"'
READ = '"dwell", "comments_reads", "specification_reads", "bottom_reads"'
SMALL = f"features = [{SESSION}, {READ}]\nmodel.hidden = [32, 16]\nmodel.dropout = 0.3"
READS = AFTER.format(model=SMALL, train=CART)


def ranker(after: str, keys: str) -> str:
    """A teacher that sees what happened after the event, and a distiller from it to the ranker."""
    return after + pair(keys, "after", "rank")


EMBEDDED = (
    Method("bce, label weight rest (PFD)", ranker(DWELL, BCE), weights=(0.1, 0.5, 0.9), settings=RANK_REST),
    Method("kl, T = 2", ranker(DWELL, KL + "temperature = 2.0"), 1, (0.5, 1, 2)),
    Method("mse", ranker(DWELL, MSE), 0.1, (0.1, 0.5)),
    Method("PFD in one run", ranker(DWELL, BCE + "warmup_steps = 200\n" + BUT_USERS), settings=RANK_REST),
    Method("hint", ranker(DWELL, 'method = "hidden"\nlayers = [["mlp.1", "mlp.1"]]'), 0.01, STATES),
)

APPLIANCES = (
    Method("bce, label weight rest (PFD)", ranker(READS, BCE), weights=(0.1, 0.5, 0.9), settings=RANK_REST),
    Method("kl, T = 2", ranker(READS, KL + "temperature = 2.0"), 1, (0.5, 1, 2)),
)


def rocket(keys: str, weight: str = "WEIGHT") -> str:
    """A distiller from the booster to the light net."""
    return pair(keys, "booster", "light", weight)


LOWER = JOINT + 'share = ["embedding", "mlp.0"]\n'
DEEPER = tuple((depth, f"stage.light.model.hidden={[64] * depth}") for depth in (2, 3, 4))
KD = KL + "temperature = 4.0"

ROCKET = (
    Method("KD", rocket(KD), 0.5, (0.1, 0.5)),
    Method("rocket", rocket(MSE + LOWER), 0.1, (0.03, 0.1)),
    Method("rocket + KD", rocket(MSE + LOWER) + rocket(KD, "0.5"), 0.1),
    Method("no gradient block", rocket(MSE + LOWER + "block = false"), 0.1),
    Method("no sharing", rocket(MSE + JOINT), 0.1),
    Method("fixed booster", rocket(MSE), 0.1),
    Method("hint prob-mse", rocket(LOGIT + 'loss = "prob-mse"\n' + LOWER), 1),
    Method("hint kl", rocket(KD + "\n" + LOWER), 0.5),
    *(Method(f"KD, {depth} layers", rocket(KD), 0.5, settings=(hidden,)) for depth, hidden in DEEPER),
    *(Method(f"rocket, {depth} layers", rocket(MSE + LOWER), 0.1, settings=(hidden,)) for depth, hidden in DEEPER),
)

WORLDS = (
    World("movielens-1m", "prerank", "rank", MOVIELENS),
    World("world", "rank", "after", EMBEDDED),
    World("jd-appliances", "rank", "after", APPLIANCES),
    World("frappe", "light", "booster", ROCKET),
)
