"""Which layer scores are there, and how are they shown?

Catalogue of scores: `sparsecod analyze`, its help, reports, studies and the card of an
export read this one table. It needs neither jax nor numpy, so that a help text and a report
wait for neither. `analysis/scores.py` has the function of each score.
"""

import dataclasses

from sparsecod_jax.errors import ConfigError

Path = tuple[str, ...]  # names that lead to a value in scores.json


@dataclasses.dataclass(frozen=True)
class Column:
    """One number per run, in the table of scored runs.

    Of a score with one value per block, the last block's.

    Attributes:
      interval: the value has two ends.
    """

    name: str
    path: Path
    meaning: str
    interval: bool = False


@dataclasses.dataclass(frozen=True)
class Curve:
    """One value per block, drawn against depth.

    Of a score with one value per head, the mean over heads.

    Attributes:
      reading: how to read the figure.
      log: whether the values are on a logarithmic axis.
      predicted: of a second curve, drawn dashed.
      probe_length: of tokens, where curves compare at one length only.
    """

    path: Path
    title: str
    unit: str
    reading: str
    log: bool = False
    predicted: Path | None = None
    probe_length: Path | None = None


@dataclasses.dataclass(frozen=True)
class Matrix:
    """One value per row and column, drawn as colours.

    Attributes:
      signed: whether each sign has a colour of its own.
    """

    path: Path
    title: str
    x_label: str
    y_label: str
    reading: str
    signed: bool = False


@dataclasses.dataclass(frozen=True)
class CardColumn:
    """One value per block, in the card of an export.

    Attributes:
      reading: how to read it, in the text above the table.
    """

    name: str
    path: Path
    reading: str = ""


@dataclasses.dataclass(frozen=True)
class LayerScore:
    """A score, apart from how it is computed.

    Attributes:
      sequences: how many of the first sequences a costly score takes; None takes all.
      headlines: metrics in a study's table of arms, by the names of their columns. A metric
        is named as `report/measures.py` reads it.
      across_studies: the metric that is set against variance over the runs of all studies.
      columns: of the table of scored runs.
      card: columns of the card's table of blocks.
    """

    sequences: int | None = None
    headlines: dict[str, str] = dataclasses.field(default_factory=dict)
    across_studies: str | None = None
    columns: tuple[Column, ...] = ()
    curves: tuple[Curve, ...] = ()
    matrices: tuple[Matrix, ...] = ()
    card: tuple[CardColumn, ...] = ()


DEEP_WORKS = "Higher in late blocks: they still do something."

# By name, in the order in which they are computed.
CATALOGUE = {
    "profile": LayerScore(
        sequences=32,
        curves=(
            Curve(
                path=("block_influence",),
                title="Block influence",
                unit="1 - cos(input, output)",
                reading=f"0: the block does not turn the residual stream. {DEEP_WORKS}",
                log=True,
            ),
            Curve(
                path=("profile", "relative_update/block"),
                title="Relative size of updates",
                unit="|output - input| / |input|",
                reading=f"What a block adds, against what is there. {DEEP_WORKS}",
                log=True,
            ),
            Curve(
                path=("profile", "lens_divergence"),
                title="Logit lens",
                unit="KL(decoded after the block || final), nats",
                reading=(
                    "What the head would predict at each depth. A curve that falls until"
                    " the end means that late blocks still change the prediction."
                ),
            ),
            Curve(
                path=("profile", "lens_overlap"),
                title="Logit lens, overlap",
                unit="share of the final top 5 predictions",
                reading=(
                    "A curve that rises until the end means"
                    " that late blocks still change the prediction."
                ),
            ),
        ),
        card=(
            CardColumn(
                name="block influence",
                path=("block_influence",),
                reading=(
                    "block influence: 1 - cos(input, output);"
                    " both are 0 for a block that passes on what it gets."
                ),
            ),
            CardColumn(name="residual variance", path=("variance", "residual")),
        ),
    ),
    "usefulness": LayerScore(
        headlines={
            "usefulness (mean log loss ratio)": "scores/usefulness/score",
            "usefulness after block 1": "derived/later_usefulness",
        },
        across_studies="scores/usefulness/score",
        columns=(
            Column(
                "usefulness",
                ("usefulness", "score"),
                "mean log loss ratio of blocks replaced by affine maps",
            ),
            Column(
                "95 % interval",
                ("usefulness", "ci95"),
                "of the usefulness, over sequences",
                interval=True,
            ),
            Column(
                "share above 1.10",
                ("usefulness", "share_above", "1.10", "share"),
                "of blocks; the published threshold",
            ),
            Column(
                "as published",
                ("usefulness", "as_published", "share_above", "1.10", "share"),
                "the same share with the transposed map of the released code, in sample",
            ),
        ),
        curves=(
            Curve(
                path=("usefulness", "loss_ratio"),
                title="Usefulness",
                unit="loss with the block replaced / loss",
                reading=(
                    "Each block in turn is replaced by the best affine map of each token; 1: the"
                    f" map does as well. {DEEP_WORKS}"
                ),
            ),
            Curve(
                path=("usefulness", "as_published", "loss_ratio"),
                title="Usefulness, as published",
                unit="loss with the block replaced / loss",
                reading=(
                    "With the transposed map that the paper's code installs, in sample: above the"
                    " figure before, by what is wrong with the map."
                ),
            ),
        ),
        card=(
            CardColumn(
                name="usefulness",
                path=("usefulness", "loss_ratio"),
                reading=(
                    "Usefulness: loss with the block replaced by the best affine map of each token,"
                    " over the loss; 1 means that the map does as well."
                ),
            ),
        ),
    ),
    "causal": LayerScore(
        sequences=32,  # each block is run some 4 L times
        headlines={"causal": "scores/causal/score"},
        across_studies="scores/causal/score",
        columns=(Column("causal", ("causal", "score"), "mean over pairs of blocks"),),
        matrices=(
            Matrix(
                path=("causal", "matrix"),
                title="Causal effect",
                x_label="block l",
                y_label="skipped block s",
                reading=(
                    "Row s skipped: relative change of what block l adds."
                    " Dark to the right end of a row: later blocks build on block s."
                ),
            ),
            Matrix(
                path=("causal", "future", "matrix"),
                title="Causal effect on future tokens",
                x_label="block l",
                y_label="skipped block s",
                reading=(
                    "Block s skipped for past tokens, measured on later ones: what reaches them"
                    " through attention. Dark: later blocks build on it."
                ),
            ),
        ),
    ),
    "permutation": LayerScore(
        sequences=16,  # each block is run some L^2 / 3 times
        headlines={"permutation": "scores/permutation/score"},
        across_studies="scores/permutation/score",
        columns=(
            Column(
                "permutation", ("permutation", "score"), "mean over pairs of blocks"
            ),
        ),
        matrices=(
            Matrix(
                path=("permutation", "matrix"),
                title="Swapped blocks",
                x_label="block",
                y_label="block",
                reading=(
                    "Relative change of the loss when two blocks change places."
                    " Pale: the blocks do the same, or nothing."
                ),
            ),
        ),
    ),
    "jacobian": LayerScore(
        sequences=4,  # each block is run some D times
        headlines={"Jacobian": "scores/jacobian/distance_from_identity/mean"},
        columns=(
            Column(
                "Jacobian, last block",
                ("jacobian", "distance_from_identity"),
                "distance from the identity",
            ),
        ),
        curves=(
            Curve(
                path=("jacobian", "distance_from_identity"),
                title="Distance of the Jacobian from the identity",
                unit="|J - I| / width",
                reading=f"0: the block passes on what it gets. {DEEP_WORKS}",
                log=True,
            ),
            Curve(
                path=("jacobian", "same_position", "distance_from_identity"),
                title="Distance of the Jacobian from the identity, within a position",
                unit="|J - I| / width",
                reading=f"Without what attention brings from other positions. {DEEP_WORKS}",
                log=True,
            ),
        ),
        card=(
            CardColumn(
                name="Jacobian, distance from identity",
                path=("jacobian", "distance_from_identity"),
                reading="Jacobian: |J - I| / width;",
            ),
        ),
    ),
    "sparsity": LayerScore(
        sequences=8,
        curves=(
            Curve(
                path=("sparsity", "attention", "heads", "density"),
                title="Attention density",
                unit="1 / (n sum of squared weights)",
                reading=(
                    "Mean over heads; 1: all visible tokens alike. Lower is sparser."
                    " Compare runs of one probe length only: it is in the legend."
                ),
                probe_length=("sparsity", "attention", "probe_length"),
            ),
            Curve(
                path=("sparsity", "weights", "kinds", "ffn/down", "rms"),
                title="Weight size, FFN output",
                unit="root mean square",
                reading="Smaller matrices write less into the residual stream;"
                " weight decay acts here.",
            ),
            Curve(
                path=("sparsity", "weights", "kinds", "ffn/down", "near_zero_0.1"),
                title="Near-zero weights, FFN output",
                unit="share below 0.1 standard deviations",
                reading=(
                    "Gaussian weights have 0.080, whatever their size:"
                    " above it the matrix is sparse."
                ),
            ),
            Curve(
                path=("sparsity", "activations", "massive"),
                title="Massive activations",
                unit="largest / median magnitude",
                reading="Mean over tokens. Large: a few channels dwarf the rest of the residual"
                " stream.",
                log=True,
            ),
        ),
        matrices=(
            Matrix(
                path=("sparsity", "experts", "utilisation"),
                title="Use of experts",
                x_label="expert",
                y_label="block",
                reading=(
                    "Share of a block's choices that each expert gets."
                    " An even row: the block uses all of them alike."
                ),
            ),
            Matrix(
                path=("sparsity", "experts", "importance"),
                title="Importance of experts",
                x_label="expert",
                y_label="block",
                reading=(
                    "Relative change of the loss without the expert; blue: it gets worse."
                    " Pale rows: a block whose experts don't matter."
                ),
                signed=True,
            ),
        ),
    ),
    "theory": LayerScore(
        sequences=4,
        columns=(
            Column(
                "predicted variance, last block",
                ("theory", "predicted"),
                "from sizes of weights, attention and gates",
            ),
            Column(
                "measured",
                ("theory", "measured"),
                "variance of the last block, of the same sequences",
            ),
            Column(
                "error",
                ("theory", "relative_error"),
                "of the prediction, relative",
            ),
        ),
        curves=(
            Curve(
                path=("theory", "measured"),
                predicted=("theory", "predicted"),
                title="Predicted and measured variance",
                unit="variance of the residual stream",
                reading=(
                    "Dashed: expected from the sizes of weights, attention and gates, if"
                    " branches did not align with the residual stream. What is above it comes"
                    " from alignment, and from all else that sizes don't show."
                ),
                log=True,
            ),
        ),
    ),
}

# Reports and cards begin with the scores that have a headline.
IN_REPORTS = sorted(CATALOGUE.values(), key=lambda score: not score.headlines)


def chosen(scores: str | None) -> list[str]:
    """The names in the value of --scores, separated by commas; None is all.

    Raises:
      ConfigError: a name is unknown.
    """
    names = list(CATALOGUE) if scores is None else scores.split(",")
    unknown = [name for name in names if name not in CATALOGUE]
    if unknown:
        raise ConfigError(
            f"--scores names {unknown}: choose from {','.join(CATALOGUE)}"
        )
    return names
