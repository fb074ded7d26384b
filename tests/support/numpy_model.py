"""The model again, in plain numpy float64 with a Python loop over blocks, as an
independent word on what it computes.
"""

import numpy as np


def forward(params, tokens_BT, model):
    """Logits [B, T, V] and the per-block statistics, lists of L floats, for float64
    copies of `params`.
    """
    x = embed(params, tokens_BT)
    stats: dict[str, list[float]] = {}
    for layer in range(model.n_layers):
        a = attention_branch(params, layer, x, model)
        m, router_stats = ffn_branch(params, layer, x + a, model)
        y = x + a + m
        for name, value in (_measure(x, a, m, y) | router_stats).items():
            stats.setdefault(name, []).append(value)
        x = y
    stats["variance/final_norm"] = [
        _variance(_norm(x, _Tree(params)("final_norm", "gain"), model))
    ]
    return decode(params, x, model), stats


def embed(params, tokens_BT):
    """The stream before the first block."""
    return _Tree(params)("embedding")[tokens_BT]


def attention_branch(params, layer, x, model, position=None):
    """What attention adds in block `layer`, at depth `position` (its own when None)."""
    block = _Tree(params["blocks"], layer)
    return _attention(
        _norm(x, block("attention_norm", "gain"), model)
        * _scale(layer, position, model),
        block,
        model,
    )


def ffn_branch(params, layer, u, model, position=None):
    """What the FFN adds, and the router's statistics."""
    block = _Tree(params["blocks"], layer)
    normed = _norm(u, block("ffn_norm", "gain"), model) * _scale(layer, position, model)
    return (
        _mixture(normed, block, model)
        if model.n_experts
        else (model.ffn_scale * _ffn(normed, block, "ffn"), {})
    )


def block(params, layer, x, model, position=None):
    """The output of a block."""
    u = x + attention_branch(params, layer, x, model, position)
    return u + ffn_branch(params, layer, u, model, position)[0]


def states(params, tokens_BT, model):
    """The stream before the first block and after every block."""
    found = [embed(params, tokens_BT)]
    for layer in range(model.n_layers):
        found.append(block(params, layer, found[-1], model))
    return found


def decode(params, x, model):
    """Logits from the last block's output."""
    return _norm(x, _Tree(params)("final_norm", "gain"), model) @ _Tree(params)("head")


def losses(params, x, tokens_BT, model):
    """Mean cross-entropy of each row's T - 1 predictions."""
    logits = decode(params, x, model)[:, :-1]
    normalizer = np.log(
        np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)
    ) + logits.max(-1)
    return (
        normalizer - np.take_along_axis(logits, tokens_BT[:, 1:, None], -1)[..., 0]
    ).mean(-1)


def _scale(layer, position, model):
    depth = layer if position is None else position
    return 1 / np.sqrt(depth + 1) if model.layer_norm_scaling else 1.0


class _Tree:
    def __init__(self, tree, layer=None):
        self.tree, self.layer = tree, layer

    def __call__(self, *path):
        leaf = self.tree
        for key in path:
            leaf = leaf[key]
        leaf = np.asarray(leaf, np.float64)
        return leaf if self.layer is None else leaf[self.layer]


def _norm(x, gain, model):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + model.norm_eps) * gain


def _rotate(x, theta):
    half = x.shape[-1] // 2
    out = np.empty_like(x)
    for t in range(x.shape[1]):
        for i in range(half):
            angle = t * theta ** (-2 * i / x.shape[-1])
            first, second = x[:, t, :, i], x[:, t, :, i + half]
            out[:, t, :, i] = first * np.cos(angle) - second * np.sin(angle)
            out[:, t, :, i + half] = second * np.cos(angle) + first * np.sin(angle)
    return out


def _attention(x, block, model):
    q = _rotate(
        np.einsum("btd,dhk->bthk", x, block("attention", "query")), model.rope_theta
    )
    k = _rotate(
        np.einsum("btd,dhk->bthk", x, block("attention", "key")), model.rope_theta
    )
    v = np.einsum("btd,dhk->bthk", x, block("attention", "value"))
    group = model.n_heads // model.n_kv_heads
    out = np.zeros(x.shape)
    for head in range(model.n_heads):
        scores = np.einsum(
            "btk,bsk->bts", q[:, :, head], k[:, :, head // group]
        ) / np.sqrt(model.head_dim)
        scores = np.where(np.tril(np.ones(scores.shape[1:], bool)), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        out += (weights @ v[:, :, head // group]) @ block("attention", "out")[head]
    return out


def _swiglu(x, gate, up, down):
    hidden = x @ gate
    return (hidden / (1 + np.exp(-hidden)) * (x @ up)) @ down


def _ffn(x, block, *path):
    return _swiglu(x, *(block(*path, name) for name in ("gate", "up", "down")))


def _mixture(x, block, model):
    """Token by token: the sum over its best experts, and what became of all choices."""
    experts, k = model.n_experts, model.top_k
    router, gate, up, down = (
        block("ffn", name) for name in ("router", "gate", "up", "down")
    )
    y = np.zeros(x.shape)
    counts, probability_sums = np.zeros(experts), np.zeros(experts)
    squared_logsumexp, gate_sums, gate_square_sums = [], [], []
    for at in np.ndindex(x.shape[:2]):
        logits = x[at] @ router
        probabilities = np.exp(logits) / np.exp(logits).sum()
        chosen = np.argsort(-probabilities)[:k]
        gates = probabilities[chosen] / (
            probabilities[chosen].sum() if model.normalize_gates else 1
        )
        for e, weight in zip(chosen, gates, strict=True):
            y[at] += weight * _swiglu(x[at], gate[e], up[e], down[e])
            counts[e] += 1
        probability_sums += probabilities
        squared_logsumexp.append(np.log(np.exp(logits).sum()) ** 2)
        gate_sums.append(gates.sum())
        gate_square_sums.append((gates**2).sum())
    if model.shared_expert:
        y = _ffn(x, block, "ffn", "shared") / (k + 1) + k / (k + 1) * y
    tokens = len(gate_sums)
    share = counts / (tokens * k)
    return y, {
        "router/load_balance_loss": experts
        * float((share * probability_sums / tokens).sum()),
        "router/z_loss": float(np.mean(squared_logsumexp)),
        "router/gate_sum": float(np.mean(gate_sums)),
        "router/gate_square_sum": float(np.mean(gate_square_sums)),
        "router/max_load": float(counts.max() / counts.mean()),
        "router/load_entropy": -sum(p * np.log(p) for p in share if p)
        / np.log(max(experts, 2)),
        "router/dead_experts": float((counts == 0).mean()),
        "router/dropped": 0.0,
    }


def _variance(z):
    return float(z.var(-1, ddof=1).mean())


def _measure(x, a, m, y):
    update = y - x
    cosine = (
        (x * update).sum(-1)
        / np.linalg.norm(x, axis=-1)
        / np.linalg.norm(update, axis=-1)
    )
    return {
        "variance/residual": _variance(y),
        "variance/attention": _variance(a),
        "variance/ffn": _variance(m),
        "norm/attention": float(np.linalg.norm(a, axis=-1).mean()),
        "norm/ffn": float(np.linalg.norm(m, axis=-1).mean()),
        "cosine/update": float(cosine.mean()),
    }
