"""What is an experiment?

Frozen dataclasses, built from a config file (`config_file`) or from a run's config.json. They check all that a config alone decides. A zero
marked "derived" is replaced at once by the value that the comment names; what `layout` chooses stays open until devices are known.
"""

import dataclasses
import difflib
import json
import math
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sparsecod_jax.errors import ConfigError

Dtype = Literal["float32", "bfloat16", "float64"]
Remat = Literal[
    "none", "dots", "full"
]  # what is computed again in the backward pass: nothing, all but matrix products, all
AttentionKernel = Literal["xla", "splash", "cudnn", "reference"]
AskedKernel = Literal["auto", AttentionKernel]
LARGEST_FLOAT = 3.4e38  # beyond it float32 has no number
LARGEST = 2**40  # of a whole number; beyond it no size means what it says


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _require_positive(section: str, instance, *names: str) -> None:
    for name in names:
        value = getattr(instance, name)
        _require(value > 0, f"{section}{name} is {value}: set it above 0")


@dataclasses.dataclass(frozen=True)
class Model:
    """A Pre-LN decoder with RMSNorm, RoPE, grouped-query attention, SwiGLU or a mixture of SwiGLU experts, no biases, an untied head."""

    d_model: int = 2048
    n_layers: int = 16
    n_heads: int = 16
    n_kv_heads: int = (
        0  # derived when 0: n_heads, i.e. multi-head attention; 1 is multi-query
    )
    head_dim: int = 0  # derived when 0: d_model / n_heads
    d_ff: int = 8192  # the true hidden width of SwiGLU; in a mixture, of each expert
    n_experts: int = 0  # 0 is dense
    top_k: int = 0  # experts that each token is sent to
    normalize_gates: bool = (
        False  # the gates of a token's experts are rescaled to sum to 1
    )
    shared_expert: bool = False  # one expert more that sees every token
    d_shared: int = 0  # its hidden width
    ffn_scale: float = (
        1.0  # of what a dense FFN adds to the stream, as gates scale a mixture
    )
    load_balance_weight: float = (
        0.01  # weight of the mean of this loss over blocks; likewise router_z_weight
    )
    router_z_weight: float = 0.001
    vocab_size: int = 50304
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6
    init_std: float = (
        0.0  # of every matrix; derived when 0: 0.02 * sqrt(2048 / d_model)
    )
    layer_norm_scaling: bool = (
        False  # both norm outputs of block l (from 1) times 1/sqrt(l)
    )
    document_masking: bool = False  # attention stays within a document
    compute_dtype: Dtype = "bfloat16"
    residual_dtype: Dtype = "float32"  # bfloat16 reproduces the published runs

    def __post_init__(self):
        _require_positive(
            "model.",
            self,
            "d_model",
            "n_layers",
            "n_heads",
            "d_ff",
            "vocab_size",
            "rope_theta",
            "norm_eps",
            "ffn_scale",
        )
        if not self.head_dim:
            _require(
                self.d_model % self.n_heads == 0,
                f"model.d_model={self.d_model} is not a multiple of model.n_heads={self.n_heads}: change one, or set model.head_dim",
            )
        derived = {
            "n_kv_heads": self.n_kv_heads or self.n_heads,
            "head_dim": self.head_dim or self.d_model // self.n_heads,
            "init_std": self.init_std or 0.02 * math.sqrt(2048 / self.d_model),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)
        _require_positive("model.", self, "n_kv_heads", "head_dim", "init_std")
        _require(
            self.n_heads % self.n_kv_heads == 0,
            f"model.n_heads={self.n_heads} is not a multiple of model.n_kv_heads={self.n_kv_heads}: choose a divisor of n_heads",
        )
        _require(
            self.head_dim % 2 == 0,
            f"model.head_dim={self.head_dim} is odd but RoPE rotates pairs: make it even",
        )
        self._check_experts()

    def _check_experts(self) -> None:
        if not self.n_experts:
            without_effect = [
                name
                for name in ("top_k", "normalize_gates", "shared_expert", "d_shared")
                if getattr(self, name)
            ]
            _require(
                not without_effect,
                f"model.n_experts is 0 but {without_effect} are set: set model.n_experts, or leave them out",
            )
        else:
            _require_positive("model.", self, "n_experts", "top_k")
            _require(
                self.ffn_scale == 1,
                f"model.ffn_scale={self.ffn_scale} is for a dense FFN, and a mixture has gates: leave it out",
            )
            _require(
                self.top_k <= self.n_experts,
                f"model.top_k={self.top_k} is more than model.n_experts={self.n_experts}: lower it to that or below",
            )
        _require(
            self.d_shared > 0 if self.shared_expert else self.d_shared == 0,
            f"model.shared_expert={self.shared_expert} but model.d_shared={self.d_shared}: set both, the width above 0, or neither",
        )
        for name in ("load_balance_weight", "router_z_weight"):
            _require(
                getattr(self, name) >= 0,
                f"model.{name}={getattr(self, name)} is negative: use 0 or more",
            )


@dataclasses.dataclass(frozen=True)
class Data:
    """Where the tokens are, and in which order they are read. `source` and `tokenizer` say how `path` is made."""

    path: str = "data/sotu"
    source: str = "sotu"
    tokenizer: str = "bpe"
    seq_len: int = 1024
    seed: int = 0

    def __post_init__(self):
        _require_positive("data.", self, "seq_len")
        _require(
            0 <= self.seed < 2**32,
            f"data.seed={self.seed} is not an unsigned 32-bit number: choose 0 to 4294967295",
        )


PARAMETER_GROUPS = ("embedding", "head", "matrices", "router", "norms")


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW with decoupled weight decay on the named parameter groups, after clipping by the global gradient norm."""

    peak_lr: float = 4e-4
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    decayed: tuple[str, ...] = (
        PARAMETER_GROUPS  # the published runs decay every tensor; ("matrices",) is the usual recipe
    )
    clip_norm: float = 1.0

    def __post_init__(self):
        _require_positive("optimizer.", self, "peak_lr", "eps", "clip_norm")
        _require(
            self.weight_decay >= 0,
            f"optimizer.weight_decay={self.weight_decay} is negative: use 0 or more",
        )
        for name in ("b1", "b2"):
            _require(
                0 <= getattr(self, name) < 1,
                f"optimizer.{name}={getattr(self, name)} is not in [0, 1): lower it",
            )
        unknown = sorted(set(self.decayed) - set(PARAMETER_GROUPS))
        _require(
            not unknown,
            f"optimizer.decayed names {unknown}: choose from {list(PARAMETER_GROUPS)}",
        )


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Learning rate against the step: a linear warm-up, then a cosine to `final_fraction` of the peak, or the peak for ever."""

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
    """Devices along each axis; an axis of 0 is chosen by `layout`, from the devices and the model."""

    data: int = 0
    fsdp: int = 0
    expert: int = 0  # devices that share out the experts of a mixture
    tensor: int = 0

    def __post_init__(self):
        for name, size in dataclasses.asdict(self).items():
            _require(
                size >= 0,
                f"mesh.{name} is {size}: use a positive number, or 0 to have it chosen",
            )


@dataclasses.dataclass(frozen=True)
class Execution:
    """How the same mathematics is carried out; none of it is part of a run's identity. `layout` chooses what is 0 or auto."""

    accumulation: int = 0  # microbatches a step
    remat: Remat = "full"
    attention: AskedKernel = "auto"
    unroll: bool = False  # blocks one by one instead of in a loop: faster on GPUs, more memory, compile time that grows with depth
    max_skipped_updates: int = 10  # non-finite updates tolerated over the whole run

    def __post_init__(self):
        _require(
            self.accumulation >= 0,
            "execution.accumulation is negative: use a positive number, or 0 to have it chosen",
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
    """Held-out perplexity at a length that does not follow the training length."""

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
    """When state is saved and what is kept: the newest `keep`, and every `keep_every`-th step."""

    every: int = 500
    keep: int = 2
    keep_every: int = 0  # 0 keeps only the newest

    def __post_init__(self):
        _require_positive("checkpoint.", self, "every", "keep")
        _require(
            self.keep_every >= 0, "checkpoint.keep_every is negative: use 0 or more"
        )


@dataclasses.dataclass(frozen=True)
class Log:
    """How often the console and TensorBoard hear, and how often the costly statistics run; metrics.jsonl takes every step."""

    every: int = 10
    moments_every: int = 100  # 0 never

    def __post_init__(self):
        _require_positive("log.", self, "every")
        _require(
            self.moments_every >= 0, "log.moments_every is negative: use 0 for never"
        )


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One training run."""

    seed: int = 0
    steps: int = 19074
    global_batch: int = 256  # sequences a step
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
        _require(
            0 <= self.seed < 2**32,
            f"seed={self.seed} is not an unsigned 32-bit number: choose 0 to 4294967295",
        )
        accumulation = self.execution.accumulation
        _require(
            not accumulation or self.global_batch % accumulation == 0,
            f"global_batch={self.global_batch} is not a multiple of execution.accumulation={accumulation}: change one of them",
        )
        _require(
            self.execution.attention != "cudnn"
            or self.model.compute_dtype == "bfloat16",
            "execution.attention=cudnn computes in 16 bits: set model.compute_dtype=bfloat16, or execution.attention=xla",
        )
        _require(
            self.schedule.kind == "constant" or self.schedule.warmup_steps < self.steps,
            f"schedule.warmup_steps={self.schedule.warmup_steps} leaves no step of steps={self.steps} for the cosine: lower it",
        )

    @property
    def tokens_per_step(self) -> int:
        return self.global_batch * self.data.seq_len


def from_dict(values: dict[str, Any], cls: type = Experiment, where: str = "") -> Any:
    """Builds `cls` from nested plain values (a ConfigDict's or config.json's); refuses unknown keys and wrong types."""
    _require(
        isinstance(values, dict),
        f"{where.rstrip('.') or 'the config'}={_brief(values)} is not a section: give it fields",
    )
    hints = get_type_hints(cls)
    for name in values:
        if name not in hints:
            guess = difflib.get_close_matches(str(name), hints, n=1)
            hint = (
                f"did you mean {where}{guess[0]}?"
                if guess
                else f"choose from {sorted(hints)}"
            )
            raise ConfigError(f"{where}{name} is not a config field: {hint}")
    fields = {
        name: _field(value, hints[name], where + name) for name, value in values.items()
    }
    return cls(**fields)


def _field(value, hint, where: str):
    if dataclasses.is_dataclass(hint):
        return from_dict(value, hint, where + ".")  # pyright: ignore[reportArgumentType]
    if get_origin(hint) is Literal:
        _require(
            value in get_args(hint),
            f"{where}={_brief(value)} is not known: choose from {list(get_args(hint))}",
        )
        return value
    if get_origin(hint) is tuple:
        names = isinstance(value, (list, tuple)) and all(
            isinstance(item, str) for item in value
        )
        _require(
            names, f"{where}={_brief(value)} is not a list of names: write it as one"
        )
        return tuple(value)
    if type(value) is int:
        _require(
            abs(value) < LARGEST, f"{where} is {_brief(value)}: choose a smaller one"
        )
    if hint is float and type(value) is int:
        value = float(value)
    _require(
        type(value) is hint,
        f"{where}={_brief(value)} is not of type {hint.__name__}: write it as one",
    )
    _require(
        hint is not float or abs(value) < LARGEST_FLOAT,
        f"{where}={value!r} is not finite in float32: choose another number",
    )
    return value


def _brief(value: Any) -> str:
    return (
        "a huge number"
        if isinstance(value, int) and abs(value) >= LARGEST
        else repr(value)[:200]
    )


def to_dict(experiment: Experiment) -> dict[str, Any]:
    """The resolved config as plain JSON values; `from_dict` is its inverse."""
    return json.loads(json.dumps(dataclasses.asdict(experiment)))


def flatten(values: dict[str, Any], where: str = "") -> dict[str, Any]:
    """Nested values as one level of dotted names."""
    flat = {}
    for name, value in values.items():
        flat |= (
            flatten(value, f"{where}{name}.")
            if isinstance(value, dict)
            else {where + name: value}
        )
    return flat
