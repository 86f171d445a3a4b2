"""The model and training that people know from nanoGPT's page for a CPU, written in plain PyTorch for the benchmark.

    tokens [B, T] -> logits [B, T, V], T at most 64

4 layers, 4 heads, width 128, learned positions, LayerNorm, GELU, no biases, the head tied to the embedding; batches of
12 rows of 64 characters, 2,000 steps of AdamW from 1e-3 down a cosine to 1e-4 after 100 steps of warmup. Nothing of
Shoestring is imported here.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYERS, HEADS, WIDTH, CONTEXT = 4, 4, 128, 64
ROWS, STEPS, WARMUP = 12, 2000, 100
HIGHEST, LOWEST, BETAS, DECAY, CLIP = 1e-3, 1e-4, (0.9, 0.99), 0.1, 1.0


class Block(nn.Module):
    """x [B, T, D] -> x."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(WIDTH, bias=False)
        self.query_key_value = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.attention_output = nn.Linear(WIDTH, WIDTH, bias=False)
        self.feed_forward_norm = nn.LayerNorm(WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        heads = (*x.shape[:2], 3, HEADS, WIDTH // HEADS)
        query, key, value = self.query_key_value(self.attention_norm(x)).view(heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.attention_output(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.feed_forward_norm(x))))


class PlainGPT(nn.Module):
    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:  # those into the residual stream narrower, as in GPT-2
                into_residual = name.endswith(("attention_output.weight", "down.weight"))
                nn.init.normal_(parameter, 0.0, 0.02 / math.sqrt(2 * LAYERS) if into_residual else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.embedding.weight)


def learning_rate(step: int) -> float:
    """Of the step that is number `step`, from 0."""
    if step < WARMUP:
        return HIGHEST * (step + 1) / (WARMUP + 1)
    done = (step - WARMUP) / (STEPS - WARMUP)
    return LOWEST + (HIGHEST - LOWEST) * (1 + math.cos(math.pi * done)) / 2


class Training:
    """`step()` is one step on rows that are drawn from `text`, a tensor of character numbers."""

    steps = STEPS

    def __init__(self, text: Tensor, vocabulary: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.text, self.done = text, 0
        self.model = PlainGPT(vocabulary)
        parameters = list(self.model.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": DECAY},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=HIGHEST, betas=BETAS)

    def step(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.done)
        starts = torch.randint(len(self.text) - CONTEXT, (ROWS,)).tolist()
        tokens = torch.stack([self.text[at : at + CONTEXT] for at in starts])
        labels = torch.stack([self.text[at + 1 : at + 1 + CONTEXT] for at in starts])
        loss = F.cross_entropy(self.model(tokens).flatten(0, 1), labels.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1

    def logits(self, tokens: Tensor) -> Tensor:
        """Of the model as it would be used now, [B, T] -> [B, T, V]."""
        return self.model(tokens)
