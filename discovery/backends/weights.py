"""The linear maps of a model: what heads read and write, the norms around them, the unembedding.

Architectures name and arrange their norms in different ways: before or behind the attention, with
or without a bias, with a gain of w or of 1 + w. So nothing is taken from a name. A norm is measured
by calling it (`measure_norm`), and which norm stands where is found by trying: the one is taken
that reproduces what the model computes on a probe prompt. A model for which none does is refused,
so a number that follows from these weights is never silently wrong.

Conventions: rows are multiplied from the left. A head's query is norm(x) · W_Q + b_Q, its output
z · W_O, and a logit norm(x) · W_U + b_U, before any soft cap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from discovery.backends.base import Backend, Batch
from discovery.errors import MeasurementError
from discovery.sites import ActivationKind, Site

ReadKind = Literal["q", "k", "v"]

# Relative differences that rounding explains, by dtype.
TOLERANCE = {"float64": 1e-6, "float32": 1e-4, "float16": 2e-2, "bfloat16": 6e-2}
_LARGE = 100.0  # of the probe that measures a gain: eps does not matter beside its square
_SMALL = 1e-3  # of the probe that measures eps
_PROBE_LENGTH = 9


@dataclass(frozen=True, kw_only=True)
class Norm:
    """A LayerNorm, an RMSNorm, or no norm at all, as a map with numbers of its own.

    norm(x) = gain · (x − mean(x)) / scale(x) + bias. With the scale frozen it is linear in x, and
    the contributions of the parts of x add up.

    Attributes:
        gain: what each direction is multiplied by [d_model].
        bias: what is added [d_model].
        is_centred: whether the mean over directions is subtracted (LayerNorm).
        eps: what is added to the variance; None if there is no norm, and the scale is 1.
    """

    gain: Float[Tensor, "d_model"]
    bias: Float[Tensor, "d_model"]
    is_centred: bool
    eps: float | None

    def scale(self, stream: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any 1"]:
        """Return what a stream is divided by."""
        if self.eps is None:
            return torch.ones_like(stream[..., :1])
        return (self._centre(stream).square().mean(-1, keepdim=True) + self.eps).sqrt()

    def apply_frozen(
        self, part: Float[Tensor, "*any d_model"], scale: Float[Tensor, "*#any 1"]
    ) -> Float[Tensor, "*any d_model"]:
        """Return what a part of the stream becomes, with the scale of the whole stream."""
        return self._centre(part) * self.gain / scale

    def read_direction(
        self, direction: Float[Tensor, "*any d_model"]
    ) -> Float[Tensor, "*any d_model"]:
        """Return the direction whose product with x, divided by the scale, is that with norm(x)."""
        return self._centre(direction * self.gain)

    def fold(self, weight: Float[Tensor, "*any d_model out"]) -> Float[Tensor, "*any d_model out"]:
        """Return a map that reads the normalised stream as one that reads x / scale(x)."""
        folded = weight * self.gain[:, None]
        return folded - folded.mean(-2, keepdim=True) if self.is_centred else folded

    def __call__(self, stream: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_model"]:
        return self.apply_frozen(stream, self.scale(stream)) + self.bias

    def _centre(self, stream: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_model"]:
        return stream - stream.mean(-1, keepdim=True) if self.is_centred else stream


def no_norm(d_model: int, device: torch.device) -> Norm:
    """Return the norm of a model that has none in this place."""
    gain = torch.ones(d_model, device=device)
    return Norm(gain=gain, bias=torch.zeros_like(gain), is_centred=False, eps=None)


@torch.no_grad()
def measure_norm(module: nn.Module, d_model: int, dtype: torch.dtype, device: torch.device) -> Norm:
    """Measure a norm by calling it.

    norm(0) is the bias. Adding a constant to the input tells whether the mean is subtracted. A
    large input gives the gain, a small one eps.

    Raises:
        MeasurementError: if the module is neither a LayerNorm nor an RMSNorm.
    """

    def call(vector: Tensor) -> Tensor:
        output: Tensor = module(vector.to(dtype)[None, None])
        return output[0, 0].float()

    signs = 1 - 2 * (torch.arange(d_model, device=device) % 2)
    slope = 1 + torch.arange(d_model, device=device) / d_model
    probe = (signs * slope).float()
    bias = call(torch.zeros_like(probe))
    is_centred = bool(torch.allclose(call(_LARGE * (probe + 1)), call(_LARGE * probe), rtol=1e-2))
    centred = probe - probe.mean() if is_centred else probe
    power = centred.square().mean()
    gain = (call(_LARGE * probe) - bias) / centred * power.sqrt()
    shrunk = (call(_SMALL * probe) - bias) / gain / (_SMALL * centred)
    is_read = gain.abs() > 0.01 * gain.abs().max()
    eps = (shrunk[is_read].median() ** -2 - _SMALL**2 * power).clamp(min=0.0)
    norm = Norm(gain=gain, bias=bias, is_centred=is_centred, eps=float(eps))
    check = probe.roll(1) * slope.flip(0) + 0.5
    name = str(dtype).removeprefix("torch.")
    if not _is_close(norm(check.to(dtype).float()), call(check), name):
        raise MeasurementError(
            f"The norm {type(module).__name__} is neither a LayerNorm nor an RMSNorm.",
            "This technique cannot read the weights of this model; patch_sweep can measure it.",
        )
    return norm


@dataclass(frozen=True, kw_only=True)
class AttentionOutput:
    """How a layer's heads become what its attention adds to the residual stream.

    With the norm's scale frozen, a head adds norm(z · W_O), and the rest of what is added is
    `bias` with the same treatment. Most models have no norm here; Gemma 2 and OLMo 2 do.

    Attributes:
        weights: W_O of each head.
        bias: what is added to the sum of the heads before the norm [d_model].
        norm: the norm behind the attention.
    """

    weights: Float[Tensor, "head d_head d_model"]
    bias: Float[Tensor, "d_model"]
    norm: Norm

    def sum_heads(self, z: Float[Tensor, "*any head d_head"]) -> Float[Tensor, "*any d_model"]:
        """Return the sum of the heads and the bias, before the norm."""
        return torch.einsum("...hd,hdm->...m", z, self.weights) + self.bias


class ModelWeights:
    """The linear maps of a loaded model, each found and checked when it is first asked for.

    All are returned in float32 on the model's device; float64 models keep float64.
    """

    def __init__(self, backend: Backend) -> None:
        """Run a probe prompt.

        Raises:
            MeasurementError: if the weights are not on this machine.
        """
        self.backend = backend
        info = backend.info
        self._dtype: torch.dtype = getattr(torch, info.dtype)
        self._wide = torch.float64 if self._dtype == torch.float64 else torch.float32
        self._module = backend.module
        self._attention_norms: dict[int, Norm] = {}
        self._outputs: dict[int, AttentionOutput] = {}

    @cached_property
    def _tokens(self) -> Tensor:
        length = min(_PROBE_LENGTH, self.backend.n_ctx)
        ids = [(37 + 101 * i * i) % self.backend.d_vocab for i in range(length)]
        return torch.tensor([ids], device=self.backend.device)

    def _read(self, *sites: Site) -> list[Tensor]:
        """Return sites of the probe prompt, without the batch axis."""
        stop = max(site.layer for site in sites) + 1
        activations = self.backend.run(Batch(self._tokens, stop=stop), sites).activations
        return [activations[site][0].to(self._wide) for site in sites]

    @cached_property
    def no_norm(self) -> Norm:
        """The norm where there is none."""
        return self._widen(no_norm(self.backend.info.d_model, self.backend.device))

    @cached_property
    def unembedding(self) -> Float[Tensor, "d_model d_vocab"]:
        """W_U. It shares memory with the model if the model computes in float32."""
        weight = self.backend.unembedding.weight
        assert isinstance(weight, Tensor)
        return weight.detach().to(self.backend.device, self._wide).T

    @cached_property
    def unembedding_bias(self) -> Float[Tensor, "d_vocab"]:
        """b_U; zeros if there is none."""
        bias = getattr(self.backend.unembedding, "bias", None)
        if bias is None:
            return torch.zeros_like(self.unembedding[0])
        return bias.detach().to(self.backend.device, self._wide)  # type: ignore[no-any-return]

    @cached_property
    def final_norm(self) -> Norm:
        """The norm before the unembedding."""
        info = self.backend.info
        [stream] = self._read(Site("resid_post", info.n_layers - 1))
        last = torch.tensor([self._tokens.shape[1] - 1], device=self._tokens.device)
        logits = self.backend.run(Batch(self._tokens, last)).logits
        assert logits is not None
        in_blocks = {
            id(part) for layer in range(info.n_layers) for part in self._parts_of_block(layer)
        }
        outside = [part for part in self._module.modules() if id(part) not in in_blocks]

        def reproduces(norm: Norm) -> bool:
            own = norm(stream[-1]) @ self.unembedding + self.unembedding_bias
            return self._is_same_up_to_cap(own, logits[0].to(self._wide))

        return self._find_norm(outside, reproduces, "the last norm")

    def attention_norm(self, layer: int) -> Norm:
        """Return the norm through which a layer's heads read the residual stream."""
        if layer not in self._attention_norms:
            stream, q, v = self._read(*(Site(kind, layer) for kind in ("resid_pre", "q", "v")))
            own = [self._input_weights(layer, kind) for kind in ("q", "v")]

            def reproduces(norm: Norm) -> bool:
                read = norm(stream)
                return all(
                    self._is_close(torch.einsum("pm,hmd->phd", read, weight) + bias, value)
                    for (weight, bias), value in zip(own, (q, v), strict=True)
                )

            self._attention_norms[layer] = self._find_norm(
                self._parts_of_block(layer), reproduces, f"the norm before attention {layer}"
            )
        return self._attention_norms[layer]

    def reads(
        self, layer: int, kind: ReadKind
    ) -> tuple[Float[Tensor, "head d_model d_head"], Float[Tensor, "head d_head"]]:
        """Return W and b of q, k or v of a layer; k and v have key-value heads.

        They read the normalised stream: `attention_norm` says how it comes about, and checks them.
        """
        self.attention_norm(layer)
        return self._input_weights(layer, kind)

    def attention_output(self, layer: int) -> AttentionOutput:
        """Return how a layer's heads become what its attention adds to the residual stream."""
        if layer not in self._outputs:
            z, attn_out = self._read(Site("z", layer), Site("attn_out", layer))
            weights = self.backend.head_weights(layer).to(self.backend.device, self._wide)
            heads = torch.einsum("phd,hdm->pm", z, weights)
            rest = attn_out - heads
            zero = torch.zeros_like(rest[0])
            bias = rest.mean(0)
            factor = float((heads * attn_out).sum() / heads.square().sum())
            if self._is_close(heads + bias, attn_out):
                norm = self.no_norm
            elif self._is_close(factor * heads, attn_out):  # Granite scales what is added
                bias = zero
                norm = replace(self.no_norm, gain=factor * self.no_norm.gain)
            else:
                bias = zero
                norm = self._find_norm(
                    self._parts_of_block(layer),
                    lambda norm: self._is_close(norm(heads), attn_out),
                    f"the norm behind attention {layer}",
                )
            self._outputs[layer] = AttentionOutput(weights=weights, bias=bias, norm=norm)
        return self._outputs[layer]

    def require_sums(self) -> None:
        """Check that the stream is the sum of what attention and MLPs write, and of the embedding.

        Raises:
            MeasurementError: if it is not.
        """
        info = self.backend.info
        kinds: list[ActivationKind] = ["attn_out"] if info.attn_only else ["attn_out", "mlp_out"]
        for layer in {0, info.n_layers - 1}:
            sites = [Site(kind, layer) for kind in kinds]
            after, *parts = self._read(Site("resid_post", layer), Site("resid_pre", layer), *sites)
            if not self._is_close(torch.stack(parts).sum(0), after):
                raise MeasurementError(
                    f"In {info.architecture} a layer does not add its attention's and its MLP's "
                    "output to the residual stream.",
                    "Contributions do not add up in this model; use patch_sweep.",
                )

    @property
    def normalises_queries(self) -> bool:
        """Whether queries and keys go through a norm of their own (Qwen 3, Gemma 3, OLMo 2)."""
        return any(name.endswith(("q_norm", "q_layernorm")) for name, _ in self._named_modules())

    def _named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        return iter(self._module.named_modules())

    def _parts_of_block(self, layer: int) -> list[nn.Module]:
        return list(self.backend.block_module(layer).modules())

    def _input_weights(self, layer: int, kind: ReadKind) -> tuple[Tensor, Tensor]:
        weight, bias = self.backend.input_weights(layer, kind)
        device = self.backend.device
        weight = weight.detach().to(device, self._wide)
        if bias is None:
            bias = torch.zeros(weight.shape[0], weight.shape[2], device=device)
        return weight, bias.detach().to(device, self._wide).reshape(weight.shape[0], -1)

    def _find_norm(
        self, parts: list[nn.Module], reproduces: Callable[[Norm], bool], what: str
    ) -> Norm:
        """Return the norm among some modules, or none, that reproduces what the model computes."""
        if reproduces(self.no_norm):
            return self.no_norm
        info = self.backend.info
        for part in parts:
            if "norm" not in type(part).__name__.lower():
                continue
            try:
                norm = measure_norm(part, info.d_model, self._dtype, self.backend.device)
            except (MeasurementError, RuntimeError, TypeError, AttributeError):
                continue  # it takes vectors of another width, or is no norm at all
            norm = self._widen(norm)
            if reproduces(norm):
                return norm
        raise MeasurementError(
            f"{what[0].upper()}{what[1:]} of {info.architecture} was not found: no norm of the "
            "model reproduces its numbers.",
            "This technique reads weights; use patch_sweep and ablate_heads for this model.",
        )

    def _widen(self, norm: Norm) -> Norm:
        return replace(norm, gain=norm.gain.to(self._wide), bias=norm.bias.to(self._wide))

    def _is_close(self, own: Tensor, value: Tensor) -> bool:
        return _is_close(own, value, self.backend.info.dtype)

    def _is_same_up_to_cap(self, own: Tensor, logits: Tensor) -> bool:
        """Whether logits are these numbers, or a rising function of them (a soft cap, a scale)."""
        if self._is_close(own, logits):
            return True
        ordered = logits[own.argsort()]
        slack = TOLERANCE[self.backend.info.dtype] * float(logits.abs().max())
        return not self.backend.abilities.columns and bool((ordered.diff() >= -slack).all())


def _is_close(own: Tensor, value: Tensor, dtype: str) -> bool:
    size = float(value.abs().max())
    return bool((own - value).abs().max() <= TOLERANCE[dtype] * max(size, 1e-6))
