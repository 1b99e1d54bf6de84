"""Our text encoders as the host calls its own: embeddings in, hidden states out.

Axis letters: B sections of a prompt, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flux_core.models.text_encoders import ClipEncoder, T5Encoder
from flux_core.offload import Work
from flux_core.sampling.prompts import t5_work


class Hold(Protocol):
    """Calls a function of the device while an encoder is there."""

    def __call__(
        self, encoder: nn.Module, function: Callable[[torch.device], Any], work: Work
    ) -> Any: ...


class InputEmbeddings(nn.Module):
    """An encoder's table of tokens as the host asks it, wherever the table lies now."""

    table: nn.Embedding

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.__dict__["table"] = table

    @property
    def weight(self) -> Tensor:
        """(V, D)."""
        return self.table.weight

    def forward(self, ids: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        """Token numbers (B, N) to embeddings (B, N, D)."""
        rows = self.table(ids.to(self.weight.device))
        return rows.to(ids.device, out_dtype or rows.dtype)


class HostTextEncoder(nn.Module):
    """One of our encoders as the host calls its own: embeddings in, hidden states out."""

    hold: Hold
    encoder: Any
    layers: nn.ModuleList

    def __init__(self, hold: Hold, encoder: nn.Module, layers: nn.ModuleList) -> None:
        super().__init__()
        self.__dict__ |= {"hold": hold, "encoder": encoder, "layers": layers}
        self.num_layers = len(layers)
        self.dtype = next(p.dtype for p in encoder.parameters() if p.is_floating_point())

    def hidden(self, embeds: Tensor) -> Tensor:
        """The last hidden states, normed, of embeddings; both (B, N, D)."""
        raise NotImplementedError

    def norm(self, x: Tensor) -> Tensor:
        """The norm behind the last layer; (B, N, D) to the same."""
        raise NotImplementedError

    def work(self, embeds: Tensor) -> Work:
        """What encoding (B, N, D) takes beside the weights."""
        return Work(image_tokens=0, text_tokens=embeds.shape[1])

    @torch.no_grad()
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        embeds: Tensor | None = None,
        num_tokens: Sequence[int] | None = None,
        intermediate_output: int | None = None,
        final_layer_norm_intermediate: bool = True,
        **_: Any,
    ) -> tuple[Tensor | None, ...]:
        """Last hidden states (B, N, D), those after one layer, and pooled vectors (B, D)."""
        if attention_mask is not None:
            raise ValueError("FLUX.1's text encoders read padding: no attention mask is taken")
        if isinstance(intermediate_output, list | str):
            raise ValueError("FLUX.1's text encoders give the states of one layer, not of several")
        if embeds is None:
            assert input_ids is not None
            embeds = self.get_input_embeddings()(input_ids)
        assert embeds is not None
        place, given = embeds.device, embeds.to(self.dtype)
        kept: list[Tensor] = []
        with ExitStack() as stack:
            if intermediate_output is not None:
                layer = self.layers[intermediate_output]
                handle = layer.register_forward_hook(lambda _, args, out: kept.append(first(out)))
                stack.callback(handle.remove)
            last, middle = self.hold(
                self.encoder,
                lambda device: self.encode(given.to(device), kept, final_layer_norm_intermediate),
                self.work(given),
            )
        pooled = None
        if num_tokens is not None:
            ends = torch.as_tensor(num_tokens, device=last.device) - 1
            pooled = last[torch.arange(len(last), device=last.device), ends]
        return last.to(place), middle, pooled, None if pooled is None else pooled.to(place)

    def encode(
        self, embeds: Tensor, kept: list[Tensor], normed: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Hidden states of embeddings, and those that were kept on the way; all (B, N, D)."""
        last = self.hidden(embeds)
        middle = kept[0] if kept else None
        return last, self.norm(middle) if middle is not None and normed else middle

    def get_input_embeddings(self) -> InputEmbeddings:
        return InputEmbeddings(self.encoder.table)


def first(output: Any) -> Tensor:
    """A layer's hidden states (B, N, D), whether or not it gives more."""
    return output[0] if isinstance(output, tuple) else output


class HostClipL(HostTextEncoder):
    """CLIP-L; its embeddings stand in for those that it would look up."""

    def __init__(self, hold: Hold, encoder: ClipEncoder) -> None:
        super().__init__(hold, encoder, encoder.text_model.encoder.layers)

    def hidden(self, embeds: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        text_model = self.encoder.text_model
        handle = self.encoder.table.register_forward_hook(lambda *_: embeds)
        try:
            ids = torch.zeros(embeds.shape[:2], dtype=torch.long, device=embeds.device)
            return text_model(input_ids=ids).last_hidden_state
        finally:
            handle.remove()

    def norm(self, x: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        return self.encoder.text_model.final_layer_norm(x)


class HostT5(HostTextEncoder):
    """T5's encoder."""

    def __init__(self, hold: Hold, encoder: T5Encoder) -> None:
        super().__init__(hold, encoder, encoder.encoder.block)

    def hidden(self, embeds: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        return self.encoder.encoder(inputs_embeds=embeds).last_hidden_state

    def norm(self, x: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        return self.encoder.encoder.final_layer_norm(x)

    def work(self, embeds: Tensor) -> Work:
        """What encoding (B, N, D) takes beside the weights."""
        return t5_work(self.encoder, embeds.shape[0] * embeds.shape[1])
