"""The models of validation/speed_problems.py in PyTorch, and what the peers' scripts have in common."""

import argparse
import json
import math
import platform
from collections.abc import Callable, Iterator
from importlib.metadata import version

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

Loss = Callable[[nn.Module, list[torch.Tensor]], torch.Tensor]


def squared_error(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    x, y = batch
    return F.mse_loss(model(x), y) * (y.shape[1] / 2)


def cross_entropy(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    x, y = batch
    return F.cross_entropy(model(x), y)


def next_token(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    x, y = batch
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())


class Block(nn.Module):
    """A pre-norm layer without biases and scales, as in validation/speed_problems.py."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        sizes = (width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)
        self.qkv, self.out, self.up, self.down = (nn.Linear(*size, bias=False) for size in sizes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attention, then a perceptron, on (batch, length, width)."""
        parts = self.qkv(F.layer_norm(x, (self.width,))).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(F.layer_norm(x, (self.width,))), approximate="tanh"))


class Transformer(nn.Module):
    """Four layers of width 128 on sequences of 32 tokens."""

    def __init__(self, vocab: int = 64, length: int = 32, width: int = 128) -> None:
        super().__init__()
        self.embed, self.width = nn.Embedding(vocab, width), width
        self.place = nn.Parameter(torch.randn(length, width) / math.sqrt(length))
        self.blocks = nn.Sequential(*[Block(width, 4) for _ in range(4)])
        self.unembed = nn.Linear(width, vocab, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (batch, length, vocab)."""
        return self.unembed(F.layer_norm(self.blocks(self.embed(tokens) + self.place), (self.width,)))


def build(name: str, num_data: int) -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor], Loss]:
    """Model, data and loss function of the same shapes as in validation/speed.py."""
    if name == "deep linear":
        model = nn.Sequential(*[nn.Linear(20, 20, bias=False) for _ in range(4)])
        return model, (torch.randn(num_data, 20), torch.randn(num_data, 20)), squared_error
    if name == "transformer":
        tokens = torch.randint(0, 64, (num_data, 33))
        return Transformer(), (tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()), next_token
    if name == "conv net":
        convolutions = [nn.Conv2d(1, 16, 3, 2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, padding=1), nn.ReLU()]
        model = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(32 * 7 * 7, 10))
        return model, (torch.randn(num_data, 1, 28, 28), torch.randint(0, 10, (num_data,))), cross_entropy
    model = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    return model, (torch.randn(num_data, 784), torch.randint(0, 10, (num_data,))), cross_entropy


class TensorLoader(DataLoader):
    """Minibatches indexed out of tensors; a DataLoader because the peers insist on one."""

    def __init__(self, dataset: TensorDataset, batch_size: int) -> None:
        super().__init__(dataset, batch_size=batch_size, drop_last=True)

    def __iter__(self) -> Iterator[list[torch.Tensor]]:
        """One epoch."""
        order = torch.randperm(len(self.dataset))
        for i in range(len(self)):
            rows = order[i * self.batch_size : (i + 1) * self.batch_size]
            yield [tensor[rows] for tensor in self.dataset.tensors]


def parse(doc: str | None) -> argparse.Namespace:
    """The flags that validation/speed_throughput.py gives."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--model", choices=("deep linear", "MLP", "conv net", "transformer"), required=True)
    parser.add_argument("--loader", choices=("usual", "fastest", "compiled"), required=True)
    parser.add_argument("--processes", type=int, default=1)
    for name in ("seed", "num-data", "batch-size", "num-chains", "num-draws"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("step-size", "gamma"):
        parser.add_argument(f"--{name}", type=float, required=True)
    return parser.parse_args()


def tell(tool: str, seconds: float, model: nn.Module, args: argparse.Namespace) -> None:
    """One JSON line on stdout."""
    versions = {tool: version(tool), "torch": torch.__version__, "python": platform.python_version()}
    record = {
        "seconds": seconds,
        "rate": args.num_chains * args.num_draws / seconds,
        "num_params": sum(p.numel() for p in model.parameters()),
        "threads": torch.get_num_threads(),
        "versions": versions,
    }
    print(json.dumps(record))
