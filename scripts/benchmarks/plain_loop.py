"""A client-round written by hand: what ours is measured against.

Once as an expert would write it, around the same network, and once as anybody would: contiguous, with `torch.nn.GRU`
and an ordinary Adam. Neither imports Lightning.

Legend: B batch, F mel bins, L frames, C classes, K channels, H hidden units.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from ser_fl.attacks.pgd import pgd, random_start
from ser_fl.attacks.threat_model import Box
from ser_fl.config.schema import Config
from ser_fl.config.training import CRNNConfig
from ser_fl.data.features import Examples
from ser_fl.models.networks import CRNN, build_network
from ser_fl.randomness import derive_seed, generator
from ser_fl.runs.records import State


class ContiguousCRNN(CRNN):
    """The CRNN of torch's own layers in its default memory layout: the same parameters under the same names.

    ReLU comes before pooling, as it is mostly written.
    """

    def __init__(self, num_classes: int, config: CRNNConfig) -> None:
        super().__init__(num_classes, config)
        layers = list(self.blocks)
        layers[0] = nn.Conv2d(1, config.channels[0], 5, stride=2, padding=2, bias=False)
        for place, (layer, following) in enumerate(pairwise(layers)):
            if isinstance(layer, nn.MaxPool2d):
                layers[place : place + 2] = following, layer
        self.blocks = nn.Sequential(*layers).to(memory_format=torch.contiguous_format)  # type: ignore[assignment]
        self.gru = nn.GRU(  # type: ignore[assignment]
            self.gru.input_size, config.hidden, batch_first=True, bidirectional=True
        )

    def forward(self, features_BFL: Tensor) -> Tensor:
        """Logits of shape (B, C), for features whose mel bins pool to four bands."""
        maps_BKFL = self.blocks(features_BFL.unsqueeze(1))
        steps_BLK = self.dropout(maps_BKFL.permute(0, 3, 1, 2).flatten(2))
        hidden_BLH, _ = self.gru(steps_BLK)
        weights_BL1 = torch.softmax(self.attention(hidden_BLH), dim=1)
        logits_BC: Tensor = self.output(self.dropout((weights_BL1 * hidden_BLH).sum(dim=1)))
        return logits_BC


class PlainLoop:
    """Client-rounds of an experiment, with one network for all of them and every client's examples in memory.

    Draws batches, dropout and random starts from the streams that our clients use, so that weights can be compared.

    Args:
        config: model, optimiser (Adam), batch size, precision and objective (clean, or PGD in every batch) are used.
        examples: standardised features and labels by client.
        num_classes: C.
        written: "same layout": our network and a fused Adam. "contiguous": `ContiguousCRNN`, an ordinary Adam, fp32.
        box: what attacks stay in.
    """

    def __init__(
        self,
        config: Config,
        examples: Mapping[str, Examples],
        num_classes: int,
        *,
        written: Literal["same layout", "contiguous"],
        box: Box | None = None,
    ) -> None:
        assert isinstance(config.model, CRNNConfig)
        self.config = config
        self.examples = examples
        self.box = box
        self.fused = written == "same layout"
        self.bf16 = self.fused and config.precision == "bf16-mixed"
        self.network = build_network(config.model, num_classes, seed=config.seed)
        if not self.fused:
            with torch.random.fork_rng(devices=[]):
                self.network = ContiguousCRNN(num_classes, config.model)

    def client_round(self, state: State, client_id: str, number: int) -> tuple[State, float]:
        """Weights after one local epoch, and the mean loss."""
        keys = (self.config.seed, "round", number, "client", client_id)
        stream, examples = generator(*keys), self.examples[client_id]
        self.network.load_state_dict(state)
        self.network.train()
        optimiser = torch.optim.Adam(
            self.network.parameters(), self.config.optimiser.learning_rate, fused=self.fused or None
        )
        total = torch.zeros(())
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(*keys))
            torch.empty((), dtype=torch.int64).random_()  # a DataLoader draws its seed from dropout's stream
            order = torch.randperm(len(examples), generator=stream)
            for rows in order.tensor_split(-(-len(examples) // self.config.federation.batch_size)):
                features_BFL, labels_B = examples.features_NFL[rows], examples.labels_N[rows]
                if self.config.stock_objective.name != "clean":
                    features_BFL = self.half_adversarial(features_BFL, labels_B, stream)
                with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
                    loss = functional.cross_entropy(self.network(features_BFL), labels_B)
                optimiser.zero_grad()
                torch.autograd.backward(loss)
                optimiser.step()
                total += loss.detach() * len(labels_B)
        return {name: tensor.clone() for name, tensor in self.network.state_dict().items()}, float(total) / len(
            examples
        )

    def half_adversarial(self, features_BFL: Tensor, labels_B: Tensor, stream: Generator) -> Tensor:
        """A batch whose first share is replaced by its PGD version."""
        attack = self.config.stock_objective
        count = max(1, round(attack.fraction * len(labels_B)))
        adversarial = pgd(
            self.network,
            features_BFL[:count],
            labels_B[:count],
            epsilon=attack.epsilon,
            step_size=attack.epsilon / 4,
            steps=attack.steps,
            box=self.box,
            start_BFL=random_start(features_BFL[:count], attack.epsilon, stream),
            low_precision=self.bf16,
        )
        return torch.cat([adversarial, features_BFL[count:]])
