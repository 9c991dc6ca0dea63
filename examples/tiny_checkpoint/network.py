"""EoMT for training: a plain ViT whose last blocks also carry the queries (CVPR 2025).

Token order in the last `num_blocks` blocks: queries, class, registers, patches. Parameter names are
those of the official checkpoints, so `state_dict` with the prefix `network.` is such a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH = 16
REGISTERS = 4
EPS = 1e-6
HEAD = 64  # channels of one attention head, as in every official model


@dataclass(frozen=True)
class Shape:
    """Everything that the size of the network depends on."""

    size: int = 160  # input height and width, pixels
    width: int = 192
    depth: int = 7
    num_blocks: int = 3  # last blocks that also carry the queries
    queries: int = 24
    classes: int = 11

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


class Prediction(NamedTuple):
    class_logits: Tensor  # [B, Q, C+1], last column is "no object"
    mask_logits: Tensor  # [B, Q, H/4, W/4]


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        if width % HEAD:
            raise ValueError(f"width {width} is not a multiple of {HEAD}; choose 128, 192, 256, …")
        self.heads = width // HEAD
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, allowed: Tensor | None) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, HEAD).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)  # [B, heads, T, 64]
        out: Tensor = self.proj(x.transpose(1, 2).reshape(batch, tokens, width))
        return out


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        # Official models start from 1e-5 and are pre-trained for long. From scratch, in an hour,
        # the blocks have to take part from the first step.
        self.gamma = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, EPS)
        self.attn = Attention(width)
        self.ls1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, EPS)
        self.mlp = Mlp(width)
        self.ls2 = LayerScale(width)

    def forward(self, x: Tensor, allowed: Tensor | None = None) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x), allowed))
        out: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return out


class PatchEmbed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, PATCH)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, H/16 * W/16, D]."""
        batch, _, height, width = images.shape
        rows, columns = height // PATCH, width // PATCH
        # A convolution whose stride is its kernel is one matrix product, faster said as such.
        patches = images.view(batch, 3, rows, PATCH, columns, PATCH).permute(0, 2, 4, 1, 3, 5)
        patches = patches.reshape(batch, rows * columns, 3 * PATCH * PATCH)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class Backbone(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, patches = shape.width, (shape.size // PATCH) ** 2
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.reg_token = nn.Parameter(torch.randn(1, REGISTERS, width) * 0.02)
        self.pos_embed = nn.Parameter(torch.zeros(1, patches, width))
        self.patch_embed = PatchEmbed(width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(width, EPS)


class Encoder(nn.Module):
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.backbone = Backbone(shape)
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet
        self.register_buffer("pixel_mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(std).view(1, 3, 1, 1))

    def embed(self, images: Tensor) -> Tensor:
        """uint8 RGB [B, 3, H, W] -> tokens [B, 1 + 4 + N, D]."""
        net, batch = self.backbone, len(images)
        patches = net.patch_embed((images.float() / 255 - self.pixel_mean) / self.pixel_std)
        prefix = torch.cat([net.cls_token, net.reg_token], 1).expand(batch, -1, -1)
        return torch.cat([prefix, patches + net.pos_embed], 1)


class ScaleBlock(nn.Module):
    """Doubles height and width of [B, D, H, W] (kept in channels-last memory)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(width, width, 2, 2)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.norm = nn.LayerNorm(width, EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(F.gelu(self._double(x)))
        out: Tensor = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return out

    def _double(self, x: Tensor) -> Tensor:
        """`conv1` as one matrix product: its stride is its kernel, so no two pixels overlap."""
        batch, width, rows, columns = x.shape
        weight = self.conv1.weight.permute(0, 2, 3, 1).reshape(width, 4 * width)
        x = x.permute(0, 2, 3, 1) @ weight  # [B, h, w, 2 * 2 * D]
        x = x.view(batch, rows, columns, 2, 2, width).permute(0, 1, 3, 2, 4, 5)
        x = x.reshape(batch, 2 * rows, 2 * columns, width)
        if self.conv1.bias is not None:
            x = x + self.conv1.bias
        return x.permute(0, 3, 1, 2)


class EoMT(nn.Module):
    attn_mask_probs: Tensor  # [num_blocks], the share of queries that are masked in each block

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.width
        self.encoder = Encoder(shape)
        self.q = nn.Embedding(shape.queries, width)
        self.class_head = nn.Linear(width, shape.classes + 1)
        layers: list[nn.Module] = [nn.Linear(width, width), nn.GELU()]
        self.mask_head = nn.Sequential(*layers, nn.Linear(width, width), nn.GELU())
        self.mask_head.append(nn.Linear(width, width))
        self.upscale = nn.Sequential(ScaleBlock(width), ScaleBlock(width))
        self.register_buffer("attn_mask_probs", torch.ones(shape.num_blocks))
        _initialise(self)

    def forward(
        self, images: Tensor, masked: bool = False, aux: Collection[int] = ()
    ) -> dict[int, Prediction]:
        """uint8 RGB [B, 3, H, W] -> predictions; the final one has the key `num_blocks`.

        `masked`: apply masked attention with the probabilities in `attn_mask_probs`.
        `aux`: query blocks (0 is the first) whose prediction from the tokens before them is wanted.
        """
        net, shape = self.encoder.backbone, self.shape
        probabilities = [float(p) if masked else 0.0 for p in self.attn_mask_probs]
        predictions: dict[int, Prediction] = {}
        x = self.encoder.embed(images)
        for number, block in enumerate(net.blocks):
            i = number - (shape.depth - shape.num_blocks)
            if i < 0:
                x = block(x)
                continue
            if i == 0:
                x = torch.cat([self.q.weight.expand(len(x), -1, -1), x], 1)
            allowed = None
            if i in aux or probabilities[i] > 0:
                # Without a loss on it, a prediction only steers attention: no gradient is needed.
                with torch.set_grad_enabled(torch.is_grad_enabled() and i in aux):
                    prediction = self.predict(net.norm(x))
                if i in aux:
                    predictions[i] = prediction
                if probabilities[i] > 0:
                    allowed = self.attention_mask(prediction.mask_logits, probabilities[i])
            x = block(x, allowed)
        predictions[shape.num_blocks] = self.predict(net.norm(x))
        return predictions

    def predict(self, tokens: Tensor) -> Prediction:
        """Normed tokens [B, Q + 1 + 4 + N, D] -> class and mask logits."""
        grid = self.shape.size // PATCH
        queries = tokens[:, : self.shape.queries]
        patches = tokens[:, self.shape.queries + 1 + REGISTERS :]
        patches = patches.transpose(1, 2).reshape(len(tokens), -1, grid, grid)
        pixels = self.upscale(patches)  # [B, D, H/4, W/4]
        mask_logits = torch.einsum("bqc,bchw->bqhw", self.mask_head(queries), pixels)
        return Prediction(self.class_head(queries), mask_logits)

    @torch.no_grad()
    def attention_mask(self, mask_logits: Tensor, probability: float) -> Tensor:
        """Which token may attend to which, bool [B, 1, T, T]: a query only inside its own mask."""
        shape = self.shape
        grid = shape.size // PATCH
        logits = F.interpolate(mask_logits.float(), (grid, grid), mode="bilinear")
        inside = logits.flatten(2) > 0  # sigmoid > 0.5; [B, Q, N]
        inside |= ~inside.any(-1, keepdim=True)  # an empty mask would attend to nothing: NaN
        # A share of the queries is set free: what annealing lowers from 1 to 0.
        inside |= torch.rand(inside.shape[:2]).unsqueeze(-1) >= probability
        prefix = shape.queries + 1 + REGISTERS
        tokens = prefix + grid * grid
        allowed = torch.ones(len(inside), 1, tokens, tokens, dtype=torch.bool)
        allowed[:, 0, : shape.queries, prefix:] = inside
        return allowed


def _initialise(model: EoMT) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.normal_(model.q.weight, std=0.3)
    with torch.no_grad():
        projection = model.encoder.backbone.patch_embed.proj
        projection.weight.copy_(_cosine_filters(model.shape.width))
        nn.init.zeros_(projection.get_parameter("bias"))
        position = _sine_positions(model.shape.size // PATCH, model.shape.width)
        model.encoder.backbone.pos_embed.copy_(position)


def _cosine_filters(width: int) -> Tensor:
    """Low 2-D cosine frequencies of brightness, fewer of two colour differences: [D, 3, 16, 16].

    Random filters see mostly noise at first. A short training from scratch gains much from starting
    with what JPEG found useful; scaling by frequency evens out the 1/f spectrum of pictures.
    """
    frequency, position = torch.arange(PATCH), torch.arange(PATCH) + 0.5
    waves = torch.cos(math.pi * frequency[:, None] * position / PATCH)  # [frequency, 16]
    waves = waves / waves.norm(dim=1, keepdim=True)
    order = sorted((u + v, u, v) for u in range(PATCH) for v in range(PATCH))
    colors = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [0.5, 0.5, -1.0]])
    colors = colors / colors.norm(dim=1, keepdim=True)
    chroma = width * 3 // 16
    filters = []
    for color, count in zip(colors, (width - 2 * chroma, chroma, chroma), strict=True):
        for total, u, v in order[:count]:
            filters.append(
                color[:, None, None] * torch.outer(waves[u], waves[v]) * (1 + total) / 16
            )
    return torch.stack(filters)


def _sine_positions(grid: int, width: int) -> Tensor:
    """Sines and cosines of the row and of the column: [1, N, D]. Learned from there on."""
    rates = 1.0 / 100 ** (torch.arange(width // 4) / (width // 4))
    angles = torch.arange(grid)[:, None] * rates  # [grid, D/4]
    line = torch.cat([angles.sin(), angles.cos()], 1)  # [grid, D/2]
    rows, columns = line[:, None].expand(-1, grid, -1), line[None].expand(grid, -1, -1)
    return torch.cat([rows, columns], 2).reshape(1, grid * grid, width) * 0.5


def checkpoint(model: EoMT, no_object_weight: float) -> dict[str, Tensor]:
    """The model as an official `.bin`: parameters in fp16, buffers in fp32."""
    parameters = dict(model.named_parameters())
    state = {
        f"network.{name}": value.detach().to(torch.float16 if name in parameters else torch.float32)
        for name, value in model.state_dict().items()
    }
    weight = torch.ones(model.shape.classes + 1)
    weight[-1] = no_object_weight
    state["criterion.empty_weight"] = weight
    return {name: value.clone() for name, value in state.items()}


def from_checkpoint(state: dict[str, Tensor]) -> EoMT:
    """Rebuild the model, in fp32; all of `Shape` can be read off the tensors."""
    state = {k.removeprefix("network."): v.float() for k, v in state.items()}
    state.pop("criterion.empty_weight", None)
    patches, width = state["encoder.backbone.pos_embed"].shape[1:]
    depth = len([k for k in state if k.startswith("encoder.") and k.endswith("norm1.weight")])
    shape = Shape(
        size=PATCH * math.isqrt(patches),
        width=width,
        depth=depth,
        num_blocks=len(state["attn_mask_probs"]),
        queries=len(state["q.weight"]),
        classes=len(state["class_head.bias"]) - 1,
    )
    model = EoMT(shape)
    model.load_state_dict(state)
    return model.eval()
