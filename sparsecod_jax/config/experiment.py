"""What is an experiment?

Config fields: frozen dataclasses, built from a config file (`config.load`) or from a run's
config.json (`config.values`). They check all that a config alone decides. A zero marked
"derived" is replaced at once by the value that the comment names; what
`parallel.layout` chooses stays open until the devices are known.
"""

import dataclasses
import math
from collections.abc import Collection
from typing import Any, Literal

from sparsecod_jax.errors import ConfigError

Dtype = Literal["float32", "bfloat16", "float64"]
# What the backward pass computes again: nothing, all but matrix products, or everything.
Remat = Literal["none", "dots", "full"]
AttentionKernel = Literal["xla", "splash", "cudnn", "reference"]
AskedKernel = Literal["auto", AttentionKernel]
PARAMETER_GROUPS = ("embedding", "head", "matrices", "router", "norms")
SEEDS = 2**32  # a seed is an unsigned 32-bit number


def added(default: Any) -> Any:
    """A config field that earlier versions did not have.

    At its default it is no part of a run's identity, so that their runs keep theirs. At any
    other value, code that must know every field refuses it unless it names it
    (`Model.unknown_to`).
    """
    return dataclasses.field(default=default, metadata={"added": True})


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _require_positive(section: str, instance: Any, *names: str) -> None:
    for name in names:
        value = getattr(instance, name)
        _require(value > 0, f"{section}{name} is {value}: set it above 0")


def _require_seed(name: str, seed: int) -> None:
    message = f"{name}={seed} is not an unsigned 32-bit number: choose 0 to {SEEDS - 1}"
    _require(0 <= seed < SEEDS, message)


@dataclasses.dataclass(frozen=True)
class Model:
    """A Pre-LN decoder without biases, its output head untied from the embedding.

    RMSNorm, RoPE, grouped-query attention, and SwiGLU or a mixture of SwiGLU experts.
    """

    d_model: int = 2048
    n_layers: int = 16
    n_heads: int = 16
    n_kv_heads: int = 0  # derived when 0: n_heads (multi-head); 1 is multi-query
    head_dim: int = 0  # derived when 0: d_model / n_heads
    d_ff: int = 8192  # hidden width of SwiGLU; with experts, of each expert
    n_experts: int = 0  # 0 is a dense model
    top_k: int = 0  # experts that each token is sent to
    normalize_gates: bool = False  # the gates of a token's experts sum to 1
    shared_expert: bool = False  # one more expert, which every token is sent to
    d_shared: int = 0  # hidden width of the shared expert
    ffn_scale: float = 1.0  # factor of a dense FFN's output, as gates scale experts
    load_balance_weight: float = 0.01  # of this loss, averaged over blocks
    router_z_weight: float = 0.001  # of this loss, averaged over blocks
    vocab_size: int = 50304
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6
    init_std: float = 0.0  # of every matrix; derived when 0: 0.02 sqrt(2048 / d_model)
    layer_norm_scaling: bool = False  # norms of block l (from 1) times 1/sqrt(l)
    document_masking: bool = False  # attention stays within a document
    compute_dtype: Dtype = "bfloat16"
    residual_dtype: Dtype = "float32"  # bfloat16 reproduces the published runs

    def __post_init__(self):
        sizes = ("d_model", "n_layers", "n_heads", "d_ff", "vocab_size")
        factors = ("rope_theta", "norm_eps", "ffn_scale")
        _require_positive("model.", self, *sizes, *factors)
        _require(
            self.head_dim != 0 or self.d_model % self.n_heads == 0,
            f"model.d_model={self.d_model} is not a multiple of "
            f"model.n_heads={self.n_heads}: change one, or set model.head_dim",
        )
        for name, value in self._derived().items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)
        _require_positive("model.", self, "n_kv_heads", "head_dim", "init_std")
        self._check_heads()
        self._check_experts()

    def resized(self, **changes: Any) -> "Model":
        """A copy with other sizes, for which what was derived is derived anew.

        A derived field keeps its value where `changes` names it, or where it differs from
        the value that its comment gives, so was set by hand. `dataclasses.replace` would
        keep the old value: a head_dim or init_std of another width.

        Raises:
          ConfigError: the sizes do not fit together.
        """
        derived = {
            name: 0
            for name, value in self._derived().items()
            if getattr(self, name) == value
        }
        return dataclasses.replace(self, **(derived | changes))

    def unknown_to(self, known: Collection[str]) -> list[str]:
        """Names of added fields, beside `known`, that are not at their defaults."""
        return [
            field.name
            for field in dataclasses.fields(self)
            if "added" in field.metadata
            and field.name not in known
            and getattr(self, field.name) != field.default
        ]

    @property
    def norms_per_block(self) -> int:
        """How many norms with a gain a block has."""
        return 2

    def _derived(self) -> dict[str, Any]:
        return {
            "n_kv_heads": self.n_heads,
            "head_dim": self.d_model // self.n_heads,
            "init_std": 0.02 * math.sqrt(2048 / self.d_model),
        }

    def _check_heads(self) -> None:
        heads, size = self.n_heads, self.head_dim
        _require(
            heads % self.n_kv_heads == 0,
            f"model.n_heads={heads} is not a multiple of "
            f"model.n_kv_heads={self.n_kv_heads}: choose a divisor of n_heads",
        )
        _require(
            size % 2 == 0,
            f"model.head_dim={size} is odd but RoPE rotates pairs: make it even",
        )

    def _check_experts(self) -> None:
        if self.n_experts:
            self._check_routing()
        else:
            names = ("top_k", "normalize_gates", "shared_expert", "d_shared")
            without_effect = [name for name in names if getattr(self, name)]
            _require(
                not without_effect,
                f"model.n_experts is 0 but {without_effect} are set: "
                "set model.n_experts, or leave them out",
            )
        _require(
            self.shared_expert == (self.d_shared > 0) and self.d_shared >= 0,
            f"model.shared_expert={self.shared_expert} but "
            f"model.d_shared={self.d_shared}: set both, the width above 0, or neither",
        )
        for name in ("load_balance_weight", "router_z_weight"):
            weight = getattr(self, name)
            _require(weight >= 0, f"model.{name}={weight} is negative: use 0 or more")

    def _check_routing(self) -> None:
        _require_positive("model.", self, "n_experts", "top_k")
        _require(
            self.ffn_scale == 1,
            f"model.ffn_scale={self.ffn_scale} is for a dense FFN, "
            "and experts have gates: leave it out",
        )
        _require(
            self.top_k <= self.n_experts,
            f"model.top_k={self.top_k} is more than "
            f"model.n_experts={self.n_experts}: lower it to that or below",
        )


@dataclasses.dataclass(frozen=True)
class Data:
    """Where the tokens are, and in which order they are read."""

    path: str = "data/sotu"
    source: str = "sotu"  # `sparsecod data` makes `path` from it
    tokenizer: str = "bpe"  # likewise
    seq_len: int = 1024
    seed: int = 0

    def __post_init__(self):
        _require_positive("data.", self, "seq_len")
        _require_seed("data.seed", self.seed)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW after clipping by the global gradient norm.

    Weight decay is decoupled, and acts on the parameter groups named in `decayed`.
    """

    peak_lr: float = 4e-4
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    # The published runs decay every tensor; ("matrices",) is the usual recipe.
    decayed: tuple[str, ...] = PARAMETER_GROUPS
    clip_norm: float = 1.0

    def __post_init__(self):
        _require_positive("optimizer.", self, "peak_lr", "eps", "clip_norm")
        _require(
            self.weight_decay >= 0,
            f"optimizer.weight_decay={self.weight_decay} is negative: use 0 or more",
        )
        for name in ("b1", "b2"):
            beta = getattr(self, name)
            message = f"optimizer.{name}={beta} is not in [0, 1): lower it"
            _require(0 <= beta < 1, message)
        unknown = sorted(set(self.decayed) - set(PARAMETER_GROUPS))
        _require(
            not unknown,
            f"optimizer.decayed names {unknown}: choose from {list(PARAMETER_GROUPS)}",
        )


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Learning rate against the step: a linear warm-up, then one of two kinds.

    A cosine down to `final_fraction` of the peak, or the peak until the end.
    """

    kind: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 1000
    final_fraction: float = 0.1

    def __post_init__(self):
        _require(
            self.warmup_steps >= 0,
            f"schedule.warmup_steps={self.warmup_steps} is negative: use 0 or more",
        )
        _require(
            0 <= self.final_fraction <= 1,
            f"schedule.final_fraction={self.final_fraction} is not in [0, 1]: change it",
        )


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Devices along each axis; `layout` chooses an axis of 0."""

    data: int = 0
    fsdp: int = 0
    expert: int = 0  # devices that share out the experts
    tensor: int = 0

    def __post_init__(self):
        for name, size in dataclasses.asdict(self).items():
            message = (
                f"mesh.{name} is {size}: use a positive number, or 0 to have it chosen"
            )
            _require(size >= 0, message)


@dataclasses.dataclass(frozen=True)
class Execution:
    """How the same mathematics is carried out; none of it is part of a run's identity.

    `layout` chooses what is 0 or "auto".
    """

    accumulation: int = 0  # microbatches per step
    remat: Remat = "full"
    attention: AskedKernel = "auto"
    # Blocks one by one, not in a loop: faster on GPUs, more memory, compile time grows with depth.
    unroll: bool = False
    max_skipped_updates: int = 10  # non-finite updates tolerated over the whole run

    def __post_init__(self):
        _require(
            self.accumulation >= 0,
            "execution.accumulation is negative: "
            "use a positive number, or 0 to have it chosen",
        )
        _require(
            self.max_skipped_updates >= 0,
            "execution.max_skipped_updates is negative: use 0 or more",
        )


@dataclasses.dataclass(frozen=True)
class Kernels:
    """How blocks are computed, nothing left open: `layout` decides it from `Execution`."""

    attention: AttentionKernel = "xla"
    remat: Remat = "full"
    unroll: bool = False


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Held-out perplexity, at a length that does not follow the training length."""

    every: int = 500  # steps; 0 evaluates only at the end
    seq_len: int = 1024
    batch_size: int = 32
    max_tokens: int = 0  # 0 takes the whole validation split

    def __post_init__(self):
        _require_positive("evaluation.", self, "seq_len", "batch_size")
        _require(
            self.every >= 0 and self.max_tokens >= 0,
            "evaluation.every or evaluation.max_tokens is negative: use 0 or more",
        )


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """When state is saved and what is kept: the newest, and every `keep_every`-th step."""

    every: int = 500  # steps
    keep: int = 2  # newest checkpoints
    keep_every: int = 0  # steps; 0 keeps only the newest

    def __post_init__(self):
        _require_positive("checkpoint.", self, "every", "keep")
        message = "checkpoint.keep_every is negative: use 0 or more"
        _require(self.keep_every >= 0, message)


@dataclasses.dataclass(frozen=True)
class Log:
    """How often the console and TensorBoard are written; metrics.jsonl has every step."""

    every: int = 10  # steps
    moments_every: int = 100  # steps between the costly statistics; 0 for never

    def __post_init__(self):
        _require_positive("log.", self, "every")
        message = "log.moments_every is negative: use 0 for never"
        _require(self.moments_every >= 0, message)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One training run."""

    seed: int = 0
    steps: int = 19074
    global_batch: int = 256  # sequences per step
    model: Model = Model()
    data: Data = Data()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    mesh: Mesh = Mesh()
    execution: Execution = Execution()
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpoint = Checkpoint()
    log: Log = Log()

    def __post_init__(self):
        _require_positive("", self, "steps", "global_batch")
        _require_seed("seed", self.seed)
        accumulation = self.execution.accumulation
        _require(
            not accumulation or self.global_batch % accumulation == 0,
            f"global_batch={self.global_batch} is not a multiple of "
            f"execution.accumulation={accumulation}: change one of them",
        )
        sixteen_bits = self.model.compute_dtype == "bfloat16"
        _require(
            self.execution.attention != "cudnn" or sixteen_bits,
            "execution.attention=cudnn computes in 16 bits: "
            "set model.compute_dtype=bfloat16, or execution.attention=xla",
        )
        warmup = self.schedule.warmup_steps
        _require(
            self.schedule.kind == "constant" or warmup < self.steps,
            f"schedule.warmup_steps={warmup} leaves no step of steps={self.steps} "
            "for the cosine: lower it",
        )

    @property
    def tokens_per_step(self) -> int:
        return self.global_batch * self.data.seq_len
