"""A pretrained encoder that clients tune by low-rank adapters (LoRA: Hu et al., arXiv 2106.09685), and its head.

Legend: B batch, T samples, F units of all hidden layers, L frames, C classes.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from ser_fl.config.encoder_folder import refuse_without
from ser_fl.config.frontend import TransformersConfig
from ser_fl.data.encoder import Encoder


class Tuned(nn.Module):
    """Encoder, adapters of its feed-forward layers, and head. The module's state and parameters are adapters and head:
    what clients train, send and keep. The rest of the encoder is read from its folder, is never trained, and goes where
    the module goes. Adapters begin as none: their second factor is zero. Errors are those of `Encoder`.
    """

    def __init__(self, config: TransformersConfig, head: nn.Module) -> None:
        super().__init__()
        refuse_without("peft")
        from peft import LoraConfig, inject_adapter_in_model

        # Not of attention: WavLM's reads the weights of its projections past any adapter.
        layers = ["fc1", "fc2"] if config.form.kind == "whisper" else ["intermediate_dense", "output_dense"]
        with torch.device("cpu"):  # of a description of the network, all else is nowhere
            encoder = Encoder(config)
            settings = LoraConfig(r=config.rank, lora_alpha=2 * config.rank, target_modules=layers)
            inject_adapter_in_model(settings, encoder.model)
        adapters = {name: weight for name, weight in encoder.eval().named_parameters() if weight.requires_grad}
        self.adapters = nn.ParameterDict({name.replace(".", "-"): weight for name, weight in adapters.items()})
        self.head = head
        self._encoder = (encoder,)
        """Not registered: no part of the state, nor of training mode."""

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        encoder, registered = cast(Any, self._encoder[0]), cast(Any, super())
        encoder._apply(fn, recurse)
        return registered._apply(fn, recurse)

    def embed(self, clips_B1T: Tensor) -> Tensor:
        """What the head's last layer sees of clips, shape (B, H)."""
        layers_BFL: Any = self._encoder[0](clips_B1T[:, 0])
        hidden_BH: Tensor = cast(Any, self.head).embed(layers_BFL)
        return hidden_BH

    def classify(self, hidden_BH: Tensor) -> Tensor:
        """Logits of shape (B, C) from what `embed` gives."""
        logits_BC: Tensor = cast(Any, self.head).classify(hidden_BH)
        return logits_BC

    def forward(self, clips_B1T: Tensor) -> Tensor:
        """Logits of shape (B, C) from clips."""
        return self.classify(self.embed(clips_B1T))
