"""The small ReLU networks of the Lazy Neuron runs. Every MLP is an nn.Sequential that sparsify knows, with biases.

Blocks normalise before attention and before the MLP (pre-norm); positions are learned; nothing is dropped out.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Size(NamedTuple):
    """Of a Transformer: width of the residual stream, hidden units of an MLP, layers (of each stack)."""

    d: int
    d_ff: int
    layers: int
    heads: int = 4


def mlp(d: int, d_ff: int, d_out: int | None = None) -> nn.Sequential:
    """relu(x K + b) V + c (2210.06313)."""
    return nn.Sequential(nn.Linear(d, d_ff), nn.ReLU(), nn.Linear(d_ff, d if d_out is None else d_out))


class Cache:
    """Keys and values of one layer, [batch, heads, room, width of a head], filled up to `length`; without gradients."""

    def __init__(self, batch: int, heads: int, room: int, width: int) -> None:
        self.keys, self.values = (torch.zeros(batch, heads, room, width) for _ in range(2))
        self.length = 0

    def add(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class Attention(nn.Module):
    def __init__(self, size: Size, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = size.heads, causal
        self.query, self.both = nn.Linear(size.d, size.d), nn.Linear(size.d, 2 * size.d)
        self.out = nn.Linear(size.d, size.d)

    def forward(self, x: Tensor, memory: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """x: [batch, tokens, d], attending to `memory` or to itself; with `cache`, one token after those in it."""
        query = self._split(self.query(x))
        keys, values = map(self._split, self.both(x if memory is None else memory).chunk(2, -1))
        causal = self.causal
        if cache is not None:
            keys, values = cache.add(keys, values)
            causal = False
        y = F.scaled_dot_product_attention(query, keys, values, is_causal=causal)
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out

    def _split(self, x: Tensor) -> Tensor:
        parts: Tensor = x.unflatten(-1, (self.heads, -1))
        return parts.transpose(1, 2)


class Block(nn.Module):
    def __init__(self, size: Size, *, causal: bool = False, crossed: bool = False) -> None:
        super().__init__()
        self.before, self.attention = nn.LayerNorm(size.d), Attention(size, causal)
        self.crossing = nn.LayerNorm(size.d) if crossed else None
        self.cross = Attention(size, False) if crossed else None
        self.between, self.mlp = nn.LayerNorm(size.d), mlp(size.d, size.d_ff)

    def forward(self, x: Tensor, memory: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        x = x + self.attention(self.before(x), None, cache)
        if self.cross is not None and self.crossing is not None:
            x = x + self.cross(self.crossing(x), memory)
        out: Tensor = x + self.mlp(self.between(x))
        return out


class Embedding(nn.Module):
    """Symbols and their places: [batch, tokens] to [batch, tokens, d]."""

    def __init__(self, symbols: int, room: int, d: int) -> None:
        super().__init__()
        self.symbol, self.place = nn.Embedding(symbols, d), nn.Parameter(torch.zeros(room, d))

    def forward(self, tokens: Tensor, start: int = 0) -> Tensor:
        out: Tensor = self.symbol(tokens) + self.place[start : start + tokens.shape[1]]
        return out


class Decoder(nn.Module):
    """A causal language model: [batch, tokens] to logits [batch, tokens, symbols]."""

    def __init__(self, symbols: int, room: int, size: Size) -> None:
        super().__init__()
        self.size, self.room = size, room
        self.embedding = Embedding(symbols, room, size.d)
        self.blocks = nn.ModuleList(Block(size, causal=True) for _ in range(size.layers))
        self.norm, self.head = nn.LayerNorm(size.d), nn.Linear(size.d, symbols)

    def forward(self, tokens: Tensor, caches: list[Cache] | None = None) -> Tensor:
        """With `caches`, one token that follows those in them."""
        x = self.embedding(tokens, caches[0].length if caches else 0)
        for i, block in enumerate(self.blocks):
            x = block(x, None, caches[i] if caches else None)
        out: Tensor = self.head(self.norm(x))
        return out

    def caches(self, batch: int = 1) -> list[Cache]:
        d, heads = self.size.d, self.size.heads
        return [Cache(batch, heads, self.room, d // heads) for _ in self.blocks]

    def decode(self, tokens: Tensor) -> Iterator[Tensor]:
        """Of [batch, length], one token at a time: the logits [batch, 1, symbols] after it."""
        caches = self.caches(tokens.shape[0])
        for token in tokens.split(1, 1):
            yield self(token, caches)


class Seq2Seq(nn.Module):
    """Encoder and decoder (as T5): source [batch, s], target so far [batch, t] to logits [batch, t, symbols]."""

    def __init__(self, symbols: int, room: int, size: Size) -> None:
        super().__init__()
        self.embedding = Embedding(symbols, room, size.d)
        self.encoder = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.decoder = nn.ModuleList(Block(size, causal=True, crossed=True) for _ in range(size.layers))
        self.between, self.norm = nn.LayerNorm(size.d), nn.LayerNorm(size.d)
        self.head = nn.Linear(size.d, symbols)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory = self.embedding(source)
        for block in self.encoder:
            memory = block(memory)
        memory, x = self.between(memory), self.embedding(target)
        for block in self.decoder:
            x = block(x, memory)
        out: Tensor = self.head(self.norm(x))
        return out


class Encoder(nn.Module):
    """A classifier of what `embedding` makes tokens of: the mean of the last layer's tokens, one linear map."""

    def __init__(self, embedding: nn.Module, size: Size, classes: int) -> None:
        super().__init__()
        self.embedding = embedding
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.norm, self.head = nn.LayerNorm(size.d), nn.Linear(size.d, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(self.norm(x).mean(1))
        return out


class Patches(nn.Module):
    """Square images [batch, side, side] to [batch, (side / patch)^2, d], each patch with its place."""

    def __init__(self, side: int, patch: int, d: int) -> None:
        super().__init__()
        self.patch, self.tokens = patch, (side // patch) ** 2
        self.project, self.place = nn.Linear(patch * patch, d), nn.Parameter(torch.zeros(self.tokens, d))

    def forward(self, images: Tensor) -> Tensor:
        cut = images.unfold(1, self.patch, self.patch).unfold(2, self.patch, self.patch)
        out: Tensor = self.project(cut.reshape(len(images), self.tokens, -1)) + self.place
        return out


def vit(side: int, patch: int, size: Size, classes: int) -> nn.Module:
    """A vision Transformer with ReLU in place of GELU, as the paper's."""
    return Encoder(Patches(side, patch, size.d), size, classes)


class Mixing(nn.Module):
    """One layer of an MLP-Mixer: an MLP across the tokens, one across the channels."""

    def __init__(self, tokens: int, size: Size) -> None:
        super().__init__()
        self.before, self.token_mlp = nn.LayerNorm(size.d), mlp(tokens, size.d_ff)
        self.between, self.channel_mlp = nn.LayerNorm(size.d), mlp(size.d, size.d_ff)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token_mlp(self.before(x).transpose(1, 2)).transpose(1, 2)
        out: Tensor = x + self.channel_mlp(self.between(x))
        return out


class Mixer(nn.Module):
    """[batch, side, side] to [batch, classes]."""

    def __init__(self, side: int, patch: int, size: Size, classes: int) -> None:
        super().__init__()
        self.embedding = Patches(side, patch, size.d)
        self.layers = nn.ModuleList(Mixing(self.embedding.tokens, size) for _ in range(size.layers))
        self.norm, self.head = nn.LayerNorm(size.d), nn.Linear(size.d, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embedding(images)
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.head(self.norm(x).mean(1))
        return out


class TwoLayer(nn.Module):
    """The 2-layer MLP on flattened images."""

    def __init__(self, pixels: int, d_ff: int, classes: int) -> None:
        super().__init__()
        self.mlp = mlp(pixels, d_ff, classes)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.mlp(images.flatten(1))
        return out


def block_flops(size: Size, context: float, nonzero: float = 1.0) -> dict[str, float]:
    """Floating-point operations (two a multiply-add) of one token in one block, by part.

    Args:
        context: tokens that it attends to.
        nonzero: share of the hidden values that are not 0, the rows of the second matrix that are multiplied.
    """
    return {
        "attention": 8.0 * size.d**2 + 4.0 * context * size.d,
        "mlp": 2.0 * size.d * size.d_ff * (1 + nonzero),
    }
