"""Every layer score again, from its definition: float64, torch, on an exported model.

Nothing of the package is used here but the exported folder. A block is a function of the residual
stream; every score is built from such functions, one block after the other, without any reuse.

N sequences, T positions, D width, L blocks, H heads, K head size, S key positions, E experts.
"""

import contextlib
import itertools
import math
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

if torch.cuda.is_available():
    torch.set_default_device("cuda")


class Exported:
    """A model of transformers whose blocks are called one by one."""

    def __init__(self, folder):
        # The default experts of transformers have no float64.
        eager = {"attn_implementation": "eager", "experts_implementation": "eager"}
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float64, **eager
        )
        self.model = model.to(torch.get_default_device()).eval().requires_grad_(False)
        self.layers = model.model.layers
        self.width = model.config.hidden_size

    def embed(self, tokens_NT) -> torch.Tensor:
        return self.model.model.embed_tokens(
            torch.as_tensor(tokens_NT, dtype=torch.long)
        )

    def _positions(self, x_NTD) -> dict[str, Any]:
        T = x_NTD.shape[1]
        positions_1T = torch.arange(T)[None]
        hidden = torch.full((T, T), -torch.inf, dtype=torch.float64).triu(1)
        return {
            "position_ids": positions_1T,
            "position_embeddings": self.model.model.rotary_emb(x_NTD, positions_1T),
            "attention_mask": hidden[None, None],
        }

    def block(self, x_NTD, number: int) -> torch.Tensor:
        return self.layers[number](x_NTD, **self._positions(x_NTD))

    def with_attention(self, x_NTD, number: int) -> torch.Tensor:
        """The residual stream after the attention branch alone."""
        layer = self.layers[number]
        mixed = layer.self_attn(layer.input_layernorm(x_NTD), **self._positions(x_NTD))[
            0
        ]
        return x_NTD + mixed

    def with_ffn(self, u_NTD, number: int) -> torch.Tensor:
        """The residual stream after the FFN branch alone."""
        layer = self.layers[number]
        return u_NTD + layer.mlp(layer.post_attention_layernorm(u_NTD))

    def states(self, tokens_NT) -> list[torch.Tensor]:
        """The residual stream before the first block and after every block."""
        result = [self.embed(tokens_NT)]
        for number in range(len(self.layers)):
            result.append(self.block(result[-1], number))
        return result

    def logits(self, x_NTD) -> torch.Tensor:
        return self.model.lm_head(self.model.model.norm(x_NTD))

    def losses(self, x_NTD, tokens_NT) -> np.ndarray:
        """Mean cross-entropy of each sequence, [N]."""
        logits = self.logits(x_NTD)[:, :-1].transpose(1, 2)
        targets = torch.as_tensor(tokens_NT, dtype=torch.long)[:, 1:]
        return (
            torch.nn.functional.cross_entropy(logits, targets, reduction="none")
            .mean(1)
            .cpu()
            .numpy()
        )

    def tail(self, x_NTD, order) -> torch.Tensor:
        for number in order:
            x_NTD = self.block(x_NTD, number)
        return x_NTD


def profile(model: Exported, tokens_NT) -> dict[str, list[float]]:
    """Means over tokens, a value per block."""
    result: dict[str, list[float]] = {}
    states = model.states(tokens_NT)
    final = model.logits(states[-1]).log_softmax(-1)
    final_best = final.topk(5).indices
    for number in range(len(model.layers)):
        x, y = states[number], states[number + 1]
        u = model.with_attention(x, number)
        here = model.logits(y).log_softmax(-1)
        best = here.topk(5).indices
        shared = (best[..., :, None] == final_best[..., None, :]).sum((-1, -2)) / 5
        similar = torch.nn.functional.cosine_similarity
        measures = {
            "variance/residual": y.var(-1),
            "variance/attention": (u - x).var(-1),
            "variance/ffn": (y - u).var(-1),
            "norm/residual": y.norm(dim=-1),
            "cosine/update": similar(x, y - x, -1),
            "block_influence": 1 - similar(x, y, -1),
            "relative_update/block": (y - x).norm(dim=-1) / x.norm(dim=-1),
            "relative_update/attention": (u - x).norm(dim=-1) / x.norm(dim=-1),
            "relative_update/ffn": (y - u).norm(dim=-1) / u.norm(dim=-1),
            "lens_divergence": (here.exp() * (here - final)).sum(-1),
            "lens_overlap": shared,
        }
        for name, value_NT in measures.items():
            result.setdefault(name, []).append(float(value_NT.double().mean()))
    return result


def usefulness(model: Exported, tokens_NT) -> list[float]:
    """Loss with a block replaced by the affine map that fits the first half, over the loss."""
    half = len(tokens_NT) // 2
    fitted, scored = model.states(tokens_NT[:half]), model.states(tokens_NT[half:])
    intact = model.losses(scored[-1], tokens_NT[half:]).mean()
    ratios = []
    for number in range(len(model.layers)):
        x, y = (
            fitted[place].reshape(-1, model.width).cpu().numpy()
            for place in (number, number + 1)
        )
        inputs = np.concatenate([x, np.ones((len(x), 1))], axis=1)
        solution = np.linalg.lstsq(inputs, y, rcond=None)[0]
        given = scored[number].cpu().numpy()
        mapped = torch.as_tensor(given @ solution[:-1] + solution[-1])
        after = model.tail(mapped, range(number + 1, len(model.layers)))
        ratios.append(float(model.losses(after, tokens_NT[half:]).mean() / intact))
    return ratios


def causal(model: Exported, tokens_NT, part: str) -> np.ndarray:
    """Relative change of a later block's update when block s, or its other branch, is skipped."""
    states = model.states(tokens_NT)
    skipped = {
        "block": lambda s: states[s],
        "attention": lambda s: model.with_ffn(states[s], s),
        "ffn": lambda s: model.with_attention(states[s], s),
    }[part]
    every_T = torch.ones(tokens_NT.shape[1], dtype=torch.float64)
    return _ratios(*_changes(model, states, skipped, every_T))


def causal_future(model: Exported, tokens_NT, cuts) -> np.ndarray:
    """The same on the tokens from a cut on, skipped for those before it but the first."""
    states = model.states(tokens_NT)
    places_T = torch.arange(tokens_NT.shape[1])
    changed, intact = np.float64(0), np.float64(0)
    for cut in cuts:
        past_T = (places_T > 0) & (places_T < cut)

        def skipped(s, past_T=past_T):
            return torch.where(past_T[None, :, None], states[s], states[s + 1])

        part = _changes(model, states, skipped, (places_T >= cut).double())
        changed, intact = changed + part[0], intact + part[1]
    return _ratios(changed, intact)


def _changes(model, states, skipped, measured_T):
    layers = len(model.layers)
    updates = [after - before for before, after in itertools.pairwise(states)]
    sizes = [float((update.norm(dim=-1) @ measured_T).sum()) for update in updates]
    changed = np.zeros((layers, layers))
    for s in range(layers):
        x = skipped(s)
        for later in range(s + 1, layers):
            y = model.block(x, later)
            difference = (y - x) - updates[later]
            changed[s, later] = float((difference.norm(dim=-1) @ measured_T).sum())
            x = y
    return changed, np.array(sizes)


def _ratios(changed_SL, sizes_L):
    return changed_SL / sizes_L[None, :]


def permutation(model: Exported, tokens_NT) -> np.ndarray:
    """|loss with two blocks swapped - loss| / loss."""
    layers = len(model.layers)
    x = model.embed(tokens_NT)
    intact = model.losses(model.tail(x, range(layers)), tokens_NT).mean()
    matrix = np.zeros((layers, layers))
    for first in range(layers):
        for second in range(first + 1, layers):
            order = list(range(layers))
            order[first], order[second] = second, first
            loss = model.losses(model.tail(x, order), tokens_NT).mean()
            matrix[first, second] = matrix[second, first] = abs(loss - intact) / intact
    return matrix


def jacobian(model: Exported, tokens_NT, number: int) -> np.ndarray:
    """dY[b, s, i] / dX[b, t, j], summed over s and t and averaged over b, over T; [D, D].

    By one reverse product per output channel.
    """
    total = torch.zeros((model.width, model.width), dtype=torch.float64)
    for first in range(0, len(tokens_NT), 4):
        x = (
            model.states(tokens_NT[first : first + 4])[number]
            .clone()
            .requires_grad_(True)
        )
        sums_D = model.block(x, number).sum((0, 1))
        total += _rows(sums_D, x)
    return total.cpu().numpy() / np.size(tokens_NT)


def _rows(sums_D, x) -> torch.Tensor:
    """The gradient of each sum by x, summed over all axes of x but the last; [D, D]."""
    if not x.is_cuda:
        pulled = [torch.autograd.grad(s, x, retain_graph=True)[0] for s in sums_D]
        return torch.stack(pulled).flatten(1, -2).sum(1)
    rows = max(
        1, 2**16 // x[..., 0].numel()
    )  # at a time; on a CPU one at a time is faster
    pulled = [
        torch.autograd.grad(sums_D, x, some, retain_graph=True, is_grads_batched=True)[
            0
        ]
        for some in torch.eye(len(sums_D), dtype=torch.float64).split(rows)
    ]
    return torch.cat(pulled).flatten(1, -2).sum(1)


def own_jacobian(model: Exported, tokens_NT, number: int) -> np.ndarray:
    """dY[b, t, i] / dX[b, t, j] averaged over b and t; [D, D].

    Each position is a sequence of its own to the differentiation: its query, key and value come
    from the copy that is differentiated, the keys and values before it from a constant.
    """
    layer = model.layers[number]
    total = torch.zeros((model.width, model.width), dtype=torch.float64)
    for tokens_T in tokens_NT:
        x_TD = model.states(tokens_T[None])[number][0]
        cos, sin = (
            part[0] for part in model._positions(x_TD[None])["position_embeddings"]
        )
        keys_THK, values_THK = _keys_values(layer, x_TD, cos, sin)

        def outputs(own_TD, keys=keys_THK, values=values_THK, cos=cos, sin=sin):
            return _own_block(layer, own_TD, keys, values, cos, sin)

        own_TD = x_TD.clone().requires_grad_(True)
        total += _rows(outputs(own_TD).sum(0), own_TD)
    return total.cpu().numpy() / np.size(tokens_NT)


def _rotate(x_THK, cos_TK, sin_TK):
    first, second = x_THK.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return x_THK * cos_TK[:, None] + turned * sin_TK[:, None]


def _keys_values(layer, x_TD, cos, sin):
    """For every query head, [T, H, K] each."""
    attention = layer.self_attn
    normed = layer.input_layernorm(x_TD)
    size, groups = attention.head_dim, attention.num_key_value_groups
    keys = _rotate(attention.k_proj(normed).unflatten(-1, (-1, size)), cos, sin)
    values = attention.v_proj(normed).unflatten(-1, (-1, size))
    return keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)


def _own_block(layer, own_TD, keys_SHK, values_SHK, cos, sin):
    attention = layer.self_attn
    normed = layer.input_layernorm(own_TD)
    queries = _rotate(
        attention.q_proj(normed).unflatten(-1, (-1, attention.head_dim)), cos, sin
    )
    own_keys, own_values = _keys_values(layer, own_TD, cos, sin)
    T, _, K = queries.shape
    before = torch.ones((T, T), dtype=torch.bool).tril(-1)[:, None]
    logits_THS = torch.einsum("thk,shk->ths", queries, keys_SHK).masked_fill(
        ~before, -torch.inf
    )
    own_logit_TH1 = torch.einsum("thk,thk->th", queries, own_keys)[..., None]
    weights = (torch.cat([logits_THS, own_logit_TH1], -1) / math.sqrt(K)).softmax(-1)
    mixed = torch.einsum("ths,shk->thk", weights[..., :-1], values_SHK)
    mixed = mixed + weights[..., -1:] * own_values
    u_TD = own_TD + attention.o_proj(mixed.flatten(1))
    return u_TD + layer.mlp(layer.post_attention_layernorm(u_TD)[None])[0]


def attention(model: Exported, tokens_NT) -> dict[str, np.ndarray]:
    """Measures of each head's weights, {name: [L, H]}: means over positions from the second on."""
    result: dict[str, list] = {}
    states = model.states(tokens_NT)
    T = tokens_NT.shape[1]
    count_T1 = torch.arange(1, T + 1, dtype=torch.float64)[1:, None]
    seen_TS = torch.ones((T, T), dtype=torch.bool).tril()[1:]
    for number, layer in enumerate(model.layers):
        x = states[number]
        weights = layer.self_attn(layer.input_layernorm(x), **model._positions(x))[1][
            :, :, 1:
        ]
        values = layer.self_attn.v_proj(layer.input_layernorm(x))
        values = values.unflatten(-1, (-1, layer.self_attn.head_dim)).transpose(1, 2)
        values = values.repeat_interleave(layer.self_attn.num_key_value_groups, 1)
        mixed_energy = (weights @ values).square().sum(-1)
        concentration = count_T1[:, 0] * weights.square().sum(-1)
        measures = {
            "density": 1 / concentration,
            "concentration": concentration,
            "entropy": torch.special.entr(weights).sum(-1) / count_T1[:, 0].log(),
            "small_relative": ((weights < 0.1 / count_T1) & seen_TS).sum(-1)
            / count_T1[:, 0],
            "small_absolute": ((weights < 1e-3) & seen_TS).sum(-1) / count_T1[:, 0],
            "sink": weights[..., 0],
        }
        gain_NH = mixed_energy.mean(-1) / values.square().sum(-1).mean(-1)
        for name, value_NHT in measures.items():
            result.setdefault(name, []).append(value_NHT.mean((0, 2)).cpu().numpy())
        result.setdefault("gain", []).append(gain_NH.mean(0).cpu().numpy())
    return {name: np.array(values) for name, values in result.items()}


def activations(model: Exported, tokens_NT) -> dict[str, list[float]]:
    """Measures of the residual stream, and of a dense FFN's hidden layer, a value per block."""
    result: dict[str, list[float]] = {}
    states = model.states(tokens_NT)
    for number, layer in enumerate(model.layers):
        size = states[number + 1].abs()
        # The median of an even number of values is the mean of the middle two, as numpy has it.
        median = torch.as_tensor(np.median(size.cpu().numpy(), axis=-1))
        measures = {"massive": size.max(-1).values / median}
        if hasattr(layer.mlp, "down_proj"):
            normed = layer.post_attention_layernorm(
                model.with_attention(states[number], number)
            )
            h = layer.mlp.act_fn(layer.mlp.gate_proj(normed)) * layer.mlp.up_proj(
                normed
            )
            energy, root = h.square().sum(-1), math.sqrt(h.shape[-1])
            rms = h.square().mean(-1, keepdim=True).sqrt()
            measures |= {
                "near_zero": (h.abs() < 0.01 * rms).double().mean(-1),
                "hoyer": (root - h.abs().sum(-1) / energy.sqrt()) / (root - 1),
                "participation": energy**2 / (h.shape[-1] * h.pow(4).sum(-1)),
            }
        for name, value_NT in measures.items():
            result.setdefault(name, []).append(float(value_NT.mean()))
    return result


def experts(model: Exported, tokens_NT) -> dict[str, np.ndarray]:
    """Share of all choices, and (loss without an expert - loss) / loss, {name: [L, E]}."""
    states = model.states(tokens_NT)
    intact = model.losses(states[-1], tokens_NT).mean()
    used, lost = [], []
    for number, layer in enumerate(model.layers):
        normed = layer.post_attention_layernorm(
            model.with_attention(states[number], number)
        )
        logits = normed.flatten(0, 1) @ layer.mlp.gate.weight.T
        chosen = logits.topk(model.model.config.num_experts_per_tok).indices
        count = logits.shape[-1]
        used.append(
            np.bincount(chosen.flatten().cpu().numpy(), minlength=count)
            / chosen.numel()
        )
        losses = []
        for expert in range(count):
            with _silenced(layer, expert):
                after = model.tail(states[number], range(number, len(model.layers)))
            losses.append(model.losses(after, tokens_NT).mean() / intact - 1)
        lost.append(losses)
    return {"utilisation": np.array(used), "importance": np.array(lost)}


@contextlib.contextmanager
def _silenced(layer, expert: int):
    weights = layer.mlp.experts.down_proj
    kept = weights[expert].clone()
    weights[expert] = 0
    try:
        yield
    finally:
        weights[expert] = kept


def gradients(model: Exported, tokens_NT1) -> tuple[float, dict[str, np.ndarray]]:
    """The mean loss of the last T tokens of each window, and its gradient by tensor name."""
    model.model.requires_grad_(True)
    inputs = torch.as_tensor(tokens_NT1[:, :-1], dtype=torch.long)
    targets = torch.as_tensor(tokens_NT1[:, 1:], dtype=torch.long)
    logits = model.model(inputs).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()
    result = {
        n: p.grad.cpu().numpy()
        for n, p in model.model.named_parameters()
        if p.grad is not None
    }
    model.model.requires_grad_(False)
    return float(loss), result
