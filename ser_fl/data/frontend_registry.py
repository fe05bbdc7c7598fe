"""Which front end a configuration names."""

from ser_fl.config.frontend import AnyFrontend, GE2EConfig, TransformersConfig
from ser_fl.data.frontend import FrontEnd, LogMel, LogMelDeltas
from ser_fl.data.functionals import FunctionalsConfig


def build_frontend(config: AnyFrontend | FunctionalsConfig) -> FrontEnd:
    """From clips of one length to features; errors are those of its class."""
    if isinstance(config, GE2EConfig):
        from ser_fl.data.ge2e import GE2E

        return GE2E(config)
    if isinstance(config, TransformersConfig):
        from ser_fl.data.encoder import Clips, TransformersFrontEnd

        return Clips(config) if config.is_waveform else TransformersFrontEnd(config)
    if isinstance(config, FunctionalsConfig):
        return config.build()
    return (LogMelDeltas if config.deltas else LogMel)(config)
