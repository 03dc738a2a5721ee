"""Every option of a run, once: name, type, default, limits, one sentence, and the commands that it is for.

From these tables come the schema of recipes, the checks, the keyword arguments of the functions in `simprune.api`,
`simprune COMMAND --help` and the reference's page. What has options of its own is a group, such as `finetune`; what is
a registered part (`simprune.core.registry`) is a choice: a name, or a mapping with `name` and the part's options.
"""

# ruff: noqa: RUF009 - `option` makes a field

from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar, Literal, Self, get_type_hints

from simprune.core.names import did_you_mean
from simprune.core.options import Chosen, Options, listed, nested, option
from simprune.core.registry import Choice

ALL = ("analyze", "plan", "compress", "frontier", "validate")
SCORED = ("analyze", "compress", "frontier")  # functions that score structures
PLANNED = ("plan", "compress", "frontier")
CONTROL = 3  # random plans of a frontier
BUILT = ("compress", "frontier")  # that make models
CHECKED = ("compress", "validate")
REBUILT = ("validate", "export")  # commands on a bundle, or on a function that builds the pruned model
COMMANDS = (*ALL, "export")
KINDS_OF_COST = Literal["macs", "params", "bytes", "latency"]


def _check_weights(name: str, weights: Mapping[str, Any] | None) -> None:
    """Raise ValueError unless the weights of outputs are finite and not negative."""
    for output, weight in (weights or {}).items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
            raise ValueError(f"{name}: expected numbers of at least 0; got {weight!r} for {output}")


@dataclass(frozen=True)
class Constraints(Options):
    """What a plan must leave alone, whoever makes it."""

    WHERE: ClassVar[str] = "planner"
    protect: Sequence[str] = option((), "names or patterns of layers and blocks that stay, or residual")
    round_to: int = option(1, "widths become multiples of it, or stay", least=1)
    min_width: int = option(1, "channels that a layer keeps at least", least=1)
    max_share: float = option(1.0, "the largest share of a layer's channels or heads that may go", above=0, most=1)
    loader: Literal["any", "transformers"] = option(
        "any", "transformers: only what from_pretrained opens, with equal widths and heads in every layer"
    )


@dataclass(frozen=True)
class Planner(Chosen, Constraints):
    """What chooses, and what it must leave alone."""

    KIND: ClassVar[str] = "planner"
    name: str | None = "greedy"
    blocks: int | None = option(None, "how many blocks go, exactly; null: as many as the planner chooses", least=0)
    finalists: int = option(0, "plans that are tried on held-out inputs, the best of which wins; 0: none", least=0)
    batch_size: int | None = option(
        None,
        "inputs with which latency is measured; null: the power of two from 2 to 64 at which a call takes 100 million "
        "multiply-adds, since with fewer the starts of layers hide what widths save",
        least=1,
    )
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.finalists == 1:
            raise ValueError("planner.finalists: expected 0, or a whole number of at least 2; got 1")
        if self.finalists and self.blocks is not None:
            raise ValueError("planner.finalists differ in their number of blocks: give either finalists or blocks")

    @classmethod
    def named(cls, planner: "str | Mapping[str, Any] | Planner", options: Mapping[str, Any]) -> "Planner":
        """A planner by name or mapping, with more options."""
        if isinstance(planner, Planner):
            planner = planner.choice | planner.constraints
        if not isinstance(planner, str | Mapping):
            raise ValueError(f"planner: expected a name, or a mapping with name and options; got {planner!r}")
        choice: dict[str, Any] = {"name": planner} if isinstance(planner, str) else dict(planner)
        return cls.of(choice | dict(options))

    @property
    def constraints(self) -> dict[str, Any]:
        """What holds for every planner, where it is not the default."""
        values = {entry.name: (getattr(self, entry.name), entry.default) for entry in listed(Planner)}
        return {key: value for key, (value, default) in values.items() if value != default}


@dataclass(frozen=True)
class Finetune(Options):
    """Training after the repair."""

    WHERE: ClassVar[str] = "finetune"
    epochs: int = option(3, "walks over the training batches; 0: no training", least=0)
    optimizer: Literal["sgd", "adamw"] = option("sgd", "SGD with Nesterov momentum, or AdamW")
    lr: float | None = option(
        None, "learning rate at the start of the cosine schedule; null: 0.01 with sgd, 0.0003 with adamw", above=0
    )
    warmup: float = option(0.0, "share of the steps in which the learning rate rises from zero", least=0, below=1)
    momentum: float = option(0.9, "of SGD", least=0, below=1)
    weight_decay: float = option(5e-4, "of weights, but not of biases and norms", least=0)
    clip: float | None = option(None, "largest norm of the gradient of all parameters; null: any", above=0)
    accumulate: int = option(1, "batches of a step, which is then as one with a larger batch", least=1)
    ema: float = option(0.0, "share of averaged weights that stays at every step; 0: no average", least=0, below=1)
    batchnorm: Literal["auto", "train", "frozen"] = option(
        "auto", "train: BatchNorm normalises by its batch; frozen: by its statistics, which stay; auto: frozen for "
        "batches of fewer than 8 inputs",
    )  # fmt: skip
    precision: Literal["fp32", "bf16", "fp16"] = option(
        "fp32", "of forward and backward passes, by accelerate; weights stay as they are"
    )
    outputs: Literal["auto", "scores", "values"] = option(
        "auto", "what the main output is: class scores, or values such as embeddings; auto: as labels and names say"
    )
    output_weights: Mapping[str, Any] | None = option(
        None, "weights of outputs in the loss and in the damage that epochs are judged by, by name; those that it does "
        "not name count 1; null: as the run says, or all alike", example="{aux: 0.4}",
    )  # fmt: skip
    distill: float = option(0.5, "share of the loss that follows the original; 0: labels alone", least=0, most=1)
    features: float = option(
        0.0, "weight of the distance between what blocks of the model and of the original give; 0: none", least=0
    )
    feature_measure: Choice = option("cka", "of that distance; a measure that has gradients", kind="measure")
    temperature: float = option(2.0, "by which the original's answers are softened", above=0)
    select: Literal["auto", "teacher", "loss", "last"] = option(
        "auto", "what decides which epoch stays: teacher, the distance from the original's answers to held-out inputs, "
        "or loss on them; auto: loss where labels are learned, else teacher; last: the last epoch stays, whatever they "
        "say",
    )  # fmt: skip
    until_passed: bool = option(False, "whether training ends as soon as all gates pass on held-out inputs")
    patience: int | None = option(
        None, "epochs that may be no better on held-out inputs before training ends; null: any number", least=0
    )
    lora: int = option(0, "rank of adapters of peft that are trained, then merged into weights; 0: none", least=0)
    tensorboard: bool = option(False, "whether figures are written for TensorBoard as well, beside the log")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_weights("finetune.output_weights", self.output_weights)

    @classmethod
    def of(cls, values: Any) -> Self:
        """From a number of epochs, or a mapping."""
        if isinstance(values, int) and not isinstance(values, bool):
            return cls(epochs=values)
        if not isinstance(values, Mapping):
            raise ValueError(f"finetune: expected a number of epochs, or a mapping, such as epochs: 3; got {values!r}")
        return super().of(values)


@dataclass(frozen=True)
class Search(Options):
    """How the smallest model that passes is searched: budget smallest."""

    WHERE: ClassVar[str] = "search"
    kind: KINDS_OF_COST = option("macs", "the cost that is made smaller")
    tolerance: float = option(
        0.02, "how near the smallest share that passed and the next that failed have to be", least=1e-4, most=0.5
    )
    inconclusive: Literal["fail", "pass"] = option("fail", "what gates that cannot be decided count as")
    correction: Literal["none", "bonferroni"] = option(
        "none", "bonferroni: every check so strict that the choice as a whole has the gates' confidence"
    )


@dataclass(frozen=True)
class Analysis(Options):
    """What the page of `simprune analyze` shows."""

    WHERE: ClassVar[str] = "analysis"
    measures: Sequence[Any] = option((), "beside the recipe's measure", kind="measure", example="[gbs, svcca]")
    chance: int = option(20, "shuffles of the inputs, to see what chance gives; 0: none", least=0)
    bootstrap: int = option(50, "resamples for intervals; 0: none", least=0)
    inputs: int = option(384, "inputs from which chance and intervals are drawn", least=32)
    figures: bool = option(True, "whether SVG and PNG for papers are drawn")


def _correction() -> Any:
    return option(
        "holm",
        "whether all gates together have their confidence, or each on its own",
        commands=("compress", "validate"),
    )


@dataclass(frozen=True)
class Check(Chosen):
    """The gates of a recipe: a check set, or a list."""

    KIND: ClassVar[str] = "check"
    WHERE: ClassVar[str] = "check"
    name: str | None = None
    gates: Sequence[Mapping[str, Any]] | None = option(
        None,
        "gates in place of a check set; a set that is named on the command line replaces them",
        example="[{measure: disagreement, limit: 0.05}]",
    )
    correction: Literal["holm", "none"] = _correction()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gates and self.options:
            raise ValueError(f"check: {next(iter(self.options))} is an option of a check set; leave it out, or gates")
        if self.gates is not None and not self.gates:
            raise ValueError("check.gates is empty; give at least one gate, or a check set, such as check=default")


@dataclass(frozen=True)
class Pruned(Options):
    """In place of a bundle."""

    WHERE: ClassVar[str] = "pruned"
    function: str | None = option(None, "package.module:function that builds the pruned model")
    weights: str | None = option(None, "its weights, a .safetensors file")


@dataclass(frozen=True)
class Settings(Options):
    """Options of the functions in `simprune.api`."""

    budget: Any = option(
        None, "what to keep of macs, params, bytes, memory, latency, as {macs: 0.5, latency: 3ms}; or smallest",
        commands=("plan", "compress"),
    )  # fmt: skip
    budgets: Sequence[float] = option(
        (0.9, 0.7, 0.5, 0.3), "shares to keep", commands=["frontier"], above=0, most=1, example="[0.9, 0.5]"
    )
    kind: KINDS_OF_COST = option("macs", "the cost that the budgets are shares of", commands=["frontier"])
    measure: Any = option("cka_debiased", "similarity of what runs through blocks", commands=SCORED, kind="measure")
    structures: Sequence[str] = option(
        ("channels", "blocks"), "kinds of structures that may go", commands=SCORED, kind="structure",
        example="[channels, blocks]",
    )  # fmt: skip
    score: Choice = option("second_order", "how channels and heads are scored", commands=SCORED, kind="score")
    block_score: Choice = option("similarity", "how blocks are scored", commands=SCORED, kind="block_score")
    replace: Literal["identity", "linear", "mean"] = option(
        "identity", "what stands in for a removed block: its input, a fitted map of it, or a constant", commands=SCORED
    )
    trials: Sequence[float] = option(
        (), "shares of what blocks, channels and heads could save, removed on trial to scale expected damage by what "
        "that costs up to 1,024 calibration inputs", commands=SCORED, above=0, below=1, example="[0.2]",
    )  # fmt: skip
    planner: Planner = option(
        Planner, "what chooses, with its constraints; analyze does not score the units that they protect",
        commands=("analyze", *PLANNED), kind="planner",
    )  # fmt: skip
    reconstruct: str | Mapping[str, Any] = option(
        "least_squares", "repair without training, one for all or by pattern of layer names, the first that fits",
        commands=ALL[:-1], kind="repair",
    )  # fmt: skip
    outputs: Mapping[str, Any] | None = option(
        None, "weights of outputs in the damage, by name; those that it does not name count 1", commands=SCORED,
        example="{aux: 0.4}",
    )  # fmt: skip
    finetune: Finetune | None = option(
        None,
        "training after the repair: epochs, or a mapping; needs training batches",
        commands=("compress", "frontier"),
    )
    gates: Any = option(
        None,
        "a check set's name, or gates; None: accuracy, changed answers, divergence",
        commands=("compress", "validate"),
    )
    correction: Literal["holm", "none"] = _correction()
    control: int = option(
        0, "random plans of the same cost that are built beside; tables show their mean", commands=BUILT, least=0
    )
    rounds: int = option(
        1, "rounds of pruning, repair, training and checks, each to a smaller budget, until a check fails; 1: all at "
        "once", commands=["compress"], least=1,
    )  # fmt: skip
    schedule: Literal["geometric", "linear"] = option(
        "geometric", "what a round removes: the same share of what is left, or the same share of the original",
        commands=["compress"],
    )  # fmt: skip
    search: Search = option(Search, "how budget smallest is searched", commands=["compress"])
    seed: int = option(0, "of everything random", commands=ALL, least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_weights("outputs", self.outputs)

    @classmethod
    def of_command(cls, command: str, options: Mapping[str, Any]) -> Self:
        """The options of one function of `simprune.api`, checked.

        Raises:
            TypeError: for a name that the function does not take.
            ValueError: for a wrong value.
            KeyError: for an unknown part.

        >>> Settings.of_command("compress", {"seed": 3}).seed
        3
        >>> Settings.of_command("compress", {"control": "3"})
        Traceback (most recent call last):
        ValueError: control: expected a whole number of at least 0; got '3'
        """
        known = [entry.name for entry in listed(Settings, command)]
        for key in options:
            if key not in known:
                raise TypeError(f"{command} takes no argument {key!r}; {did_you_mean(str(key), known)}")
        return cls(**options)


@dataclass(frozen=True)
class Recipe(Settings):
    """The keys of a recipe: options, and what only the command line needs. `check` holds gates and correction."""

    model: Any = option(None, "the network", kind="model", commands=COMMANDS)
    data: Any = option(None, "batches for calibration, training and tests", kind="data", commands=COMMANDS)
    check: Check = option(
        Check,
        "what the pruned model is checked by: a check set, or gates",
        kind="check",
        commands=("compress", "validate"),
    )
    device: str = option("auto", "where models run; auto: a GPU if there is one", commands=COMMANDS)
    plan: str | None = option(None, "a plan file to apply instead of making one", commands=["compress"])
    bundle: str | None = option(None, "the folder to check or to export", commands=REBUILT)
    pruned: Pruned = option(Pruned, "in place of a bundle", commands=REBUILT)
    format: Choice | None = option(
        None, "what is written for use without simprune; null: compress writes none, export a folder of transformers, "
        "or for other models a program of torch", commands=("compress", "export"), kind="format",
    )  # fmt: skip
    to: str | None = option(None, "the folder of the export; null: a new one", commands=("compress", "export"))
    junit: str | None = option(None, "a file to which JUnit XML is written", commands=["validate"])
    analysis: Analysis = option(Analysis, "what the page shows", commands=["analyze"])
    other: str | None = option(None, "a recipe or bundle to compare with, layer by layer", commands=["analyze"])
    resume: str | None = option(
        None, "the folder of an interrupted run to go on with", commands=("compress", "analyze")
    )
    objective: str | None = option(
        None, "what an optimising sweeper gets: accuracy, agreement, macs, params, bytes or latency_ms",
        commands=("plan", "compress"),
    )  # fmt: skip


@dataclass(frozen=True)
class Study(Options):
    """What every study takes, beside its own options."""

    quick: bool = option(False, "whether the study is small enough for minutes on two cores")
    data: str | None = option(
        None, "images: a .npz file, or a folder with one; null: scikit-learn's handwritten digits"
    )
    size: int | None = option(None, "pixels of a side, to which images are brought; null: as they are", least=8)
    models: Sequence[Any] = option(
        (), "your own trained networks for these images, as package.module:function; none: small ones are trained",
        example="[mine:resnet]",
    )  # fmt: skip
    training: int | None = option(
        None, "steps of the training of every small network; null: 20 epochs, at least 600 and at most 1,600", least=1
    )
    folder: str = option("outputs/study", "where networks, finished steps and results are stored; a run goes on there")
    seed: int = option(0, "of everything random", least=0)


PYTHON_ONLY = ("budgets", "kind", "gates", "correction")  # in a recipe these are budget: [...] and check
# The functions of `simprune.api` whose options a command reads.
READ_BY = {
    "analyze": {"analyze"},
    "plan": {"analyze", "plan", "frontier"},
    "compress": {"compress"},
    "validate": {"validate"},
    "export": set(),
}
OF_DAMAGE = ("replace", "trials", "reconstruct", "outputs")  # `simprune analyze` measures no damage at the output


def recipe_table(command: str | None = None) -> list[Field]:
    """The keys of a recipe, all or those that a command reads."""
    shared = {entry.name for entry in fields(Settings)}

    def is_read(entry: Field) -> bool:
        commands = set(entry.metadata["commands"])
        if command == "analyze" and entry.name in OF_DAMAGE:
            return False
        return command is None or bool(commands & (READ_BY[command] if entry.name in shared else {command}))

    return [entry for entry in fields(Recipe) if entry.name not in PYTHON_ONLY and is_read(entry)]


def group(entry: Field, of: type = Recipe) -> type[Options] | None:
    """The table of an option that has options of its own."""
    return nested(get_type_hints(of)[entry.name])
