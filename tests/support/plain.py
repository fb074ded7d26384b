"""The model again, in plain numpy float64 with a Python loop over blocks, as an independent word on what it computes."""

import numpy as np


def forward(params, tokens_BT, model):
    """Logits [B, T, V] and the per-block statistics, lists of L floats, for float64 copies of `params`."""
    take = _Tree(params)
    x = take("embedding")[tokens_BT]
    stats: dict[str, list[float]] = {}
    for layer in range(model.n_layers):
        scale = 1 / np.sqrt(layer + 1) if model.layer_norm_scaling else 1.0
        block = _Tree(params["blocks"], layer)
        a = _attention(_norm(x, block("attention_norm", "gain"), model) * scale, block, model)
        u = x + a
        m = _ffn(_norm(u, block("ffn_norm", "gain"), model) * scale, block)
        y = u + m
        for name, value in _measure(x, a, m, y).items():
            stats.setdefault(name, []).append(value)
        x = y
    h = _norm(x, take("final_norm", "gain"), model)
    stats["variance/final_norm"] = [_variance(h)]
    return h @ take("head"), stats


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
    q = _rotate(np.einsum("btd,dhk->bthk", x, block("attention", "query")), model.rope_theta)
    k = _rotate(np.einsum("btd,dhk->bthk", x, block("attention", "key")), model.rope_theta)
    v = np.einsum("btd,dhk->bthk", x, block("attention", "value"))
    group = model.n_heads // model.n_kv_heads
    out = np.zeros(x.shape)
    for head in range(model.n_heads):
        scores = np.einsum("btk,bsk->bts", q[:, :, head], k[:, :, head // group]) / np.sqrt(model.head_dim)
        scores = np.where(np.tril(np.ones(scores.shape[1:], bool)), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        out += (weights @ v[:, :, head // group]) @ block("attention", "out")[head]
    return out


def _ffn(x, block):
    gate = x @ block("ffn", "gate")
    return (gate / (1 + np.exp(-gate)) * (x @ block("ffn", "up"))) @ block("ffn", "down")


def _variance(z):
    return float(z.var(-1, ddof=1).mean())


def _measure(x, a, m, y):
    update = y - x
    cosine = (x * update).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(update, axis=-1)
    return {
        "variance/residual": _variance(y),
        "variance/attention": _variance(a),
        "variance/ffn": _variance(m),
        "norm/attention": float(np.linalg.norm(a, axis=-1).mean()),
        "norm/ffn": float(np.linalg.norm(m, axis=-1).mean()),
        "cosine/update": float(cosine.mean()),
    }
