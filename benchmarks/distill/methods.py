"""The distillers of the tables, by name: what is appended to the TOML of a world's undistilled experiment.

A method joins by one line. ``WEIGHT`` stands for the weight: ``chosen``, the one of ``weights`` that ``sweep.py`` finds
best by the validation AUC of seed 0, once it was run.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    data: tuple[str, str] = ("", "")
    """A passage of its data set's TOML, and what stands there instead; SEED is the seed, and a run has one."""

    def runs(self, seeds: Sequence[int]) -> list[list[int]]:
        """The seeds of every run: of all, or of each where the data differ."""
        return [[seed] for seed in seeds] if "SEED" in self.data[1] else [list(seeds)]

    def text(self) -> str:
        """The experiment without its bands, which are of another run."""
        return (HERE / f"{self.file or self.name}.toml").read_text("utf-8").partition("\n[expected")[0]

    def write(self, folder: Path, tables: str, seed: int = 0) -> Path:
        """The experiment with the tables of a method, and a data set of its own beside it."""
        text = self.text() + tables
        dataset = text.partition('dataset = "')[2].partition('"')[0]
        source = HERE / dataset if dataset.endswith(".toml") else HERE.parents[1] / "datasets" / f"{dataset}.toml"
        passage, other = self.data
        if passage or source.parent == HERE:
            definition = source.read_text("utf-8")
            assert passage in definition, f"{source} has no {passage}"
            changed = definition.replace(passage, other.replace("SEED", str(seed)))
            (folder / source.name).write_text(changed, "utf-8")
            text = text.replace(f'dataset = "{dataset}"', f'dataset = "{source.name}"', 1)
        written = folder / "experiment.toml"
        written.write_text(text, "utf-8")
        return written


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
SYNC = BCE + "warmup_steps = 200\n"
THREE = big("three", f'level = "rank"\ncopies = 3\n{ALL}')
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
    Method("rocket", pair(MSE + SHARED), 0.1, (0.001, 0.01, 0.1)),
    Method(
        "dual DNN",
        pair(MSE + SHARED) + pair(HIDDEN + 'projector = "linear"\n' + SHARED, weight="0.01"),
        0.1,
    ),
    Method("PFD in one run", pair(SYNC + BUT_USERS), settings=REST),
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
    Method("bce, rest, three rankers", THREE + pair(BCE, "three"), settings=REST),
    Method("kl, T = 4, three rankers", THREE + pair(KL + "temperature = 4.0", "three"), 1),
)

PFD_SWEEP = (  # one seed; what is in the table above, too, comes from the store
    *(Method(f"lambda {share:g}", pair(BCE), share, settings=REST) for share in (0.1, 0.3, 0.5, 0.7, 0.9)),
    Method("in one run, nothing shared", pair(SYNC + JOINT), settings=REST),
    Method("in one run, embeddings shared", pair(SYNC + SHARED), settings=REST),
    Method("in one run, but the users'", pair(SYNC + BUT_USERS), settings=REST),
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


def few(label: str, epochs: int, patience: int) -> str:
    """The ``[teacher.train]`` of the worlds with few rows."""
    return f'''label = "{label}"
samples = [{{ from = "impressions" }}]
batch_size = 512
learning_rate = 1e-3
embedding_l2 = 1e-3
epochs = {epochs}
patience = {patience}'''


DWELL = AFTER.format(model="model.hidden = [64, 32]", train=CLICK)
SESSION = '"entry", "session_category_views", "product_views", "product_cart_rate", "product_detail_rate"'
READ = '"dwell", "comments_reads", "specification_reads", "bottom_reads"'
SMALL = f"features = [{SESSION}, {READ}]\nmodel.hidden = [32, 16]\nmodel.dropout = 0.3"
READS = AFTER.format(model=SMALL, train=few("cart", 30, 4))
CARTED = AFTER.format(
    model="""features = ["user_id", "user_count", "user_recency", "item_count", "carted"]
model.embedding_size = 4
model.hidden = [32, 16]
model.dropout = 0.3""",
    train=few("buy", 8, 2),
)


def ranker(after: str, keys: str) -> str:
    """A teacher that sees what happened after the event, and a distiller from it to the ranker."""
    return after + pair(keys, "after", "rank")


def on_logits(after: str) -> tuple[Method, ...]:
    """PFD and kl from such a teacher."""
    return (
        Method("bce, label weight rest (PFD)", ranker(after, BCE), weights=(0.1, 0.5, 0.9), settings=RANK_REST),
        Method("kl, T = 2", ranker(after, KL + "temperature = 2.0"), 1, (0.5, 1, 2)),
    )


EMBEDDED = (
    *on_logits(DWELL),
    Method("mse", ranker(DWELL, MSE), 0.1, (0.1, 0.5)),
    Method("PFD in one run", ranker(DWELL, SYNC + BUT_USERS), settings=RANK_REST),
    Method("hint", ranker(DWELL, 'method = "hidden"\nlayers = [["mlp.1", "mlp.1"]]'), 0.01, STATES),
)

# Ten folds of sessions in the place of the catalogue's one split: a seed is a fold.
PARTS = "CASE WHEN f.number <= 800 THEN 'train' WHEN f.number <= 900 THEN 'valid' ELSE 'test' END"
FOLDS = "CASE WHEN (f.number + SEED) % 10 = 0 THEN 'test' WHEN (f.number + SEED) % 10 = 1 THEN 'valid' ELSE 'train' END"


def rocket(keys: str, weight: str = "WEIGHT") -> str:
    """A distiller from the booster to the light net."""
    return pair(keys, "booster", "light", weight)


DEEPER = tuple((depth, f"stage.light.model.hidden={[16] * depth}") for depth in (2, 3, 4))
KD = KL + "temperature = 4.0"

ROCKET = (
    Method("KD", rocket(KD), 0.1, (0.02, 0.1, 0.5)),
    Method("rocket", rocket(MSE + SHARED), 0.0003, (0.0003, 0.003, 0.03)),
    Method("rocket + KD", rocket(MSE + SHARED) + rocket(KD, "0.1"), 0.0003),
    Method("no gradient block", rocket(MSE + SHARED + "block = false"), 0.0003),
    Method("no sharing", rocket(MSE + JOINT), 0.0003),
    Method("fixed booster", rocket(MSE), 0.003, (0.0003, 0.003, 0.03)),
    Method("hint prob-mse", rocket(LOGIT + 'loss = "prob-mse"\n' + SHARED), 0.1),
    Method("hint kl", rocket(KD + "\n" + SHARED), 0.02),
    *(Method(f"KD, {depth} layers", rocket(KD), 0.1, settings=(hidden,)) for depth, hidden in DEEPER),
    *(Method(f"rocket, {depth} layers", rocket(MSE + SHARED), 0.0003, settings=(hidden,)) for depth, hidden in DEEPER),
)

WORLDS = (
    World("movielens-1m", "prerank", "rank", MOVIELENS),
    World("movielens-1m-pfd", "prerank", "rank", PFD_SWEEP, "movielens-1m"),
    World("world", "rank", "after", EMBEDDED),
    *(
        World(f"world-{share}", "rank", "after", EMBEDDED[:1], "world", ("rows = 1_250_000", f"rows = {rows}"))
        for share, rows in ((10, 125_000), (30, 375_000))
    ),
    World("jd-appliances", "rank", "after", on_logits(READS), data=(PARTS, FOLDS)),
    World("retailrocket", "rank", "after", on_logits(CARTED)),
    World("frappe", "light", "booster", ROCKET),
)
