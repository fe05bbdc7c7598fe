"""A graph as a file, and what the file gives: ONNX, which onnxruntime runs, and torch.export's ExportedProgram.

Legend: B clips, T samples, F bins, L frames.
"""

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ser_fl.errors import UserError, one_line
from ser_fl.exporting.graph import EnrolmentGraph, ModelGraph

OPSET = 18
SCALES = ("speaker_mean", "speaker_deviation")
"""Buffers of a graph; of an ONNX file inputs, which need not be given where training told a mean speaker."""
Graph = ModelGraph | EnrolmentGraph
Answers = Callable[[Tensor, Mapping[str, Tensor]], Sequence[Tensor]]
"""What a file gives for clips or features, and a speaker's `SCALES` or none."""


@dataclass(frozen=True, slots=True)
class Format:
    suffix: str
    write: Callable[[Graph, str, Tensor, Sequence[str], Mapping[str, str]], bytes]
    """Of (graph, name of its input, example of two rows, names of its outputs, facts that the file tells) its bytes."""
    open: Callable[[bytes], Answers]


def check_installed() -> None:
    """Refuse (`UserError`) ONNX without its packages."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"ser-fl export to onnx needs {error.name}: pip install 'ser-fl[export]'") from None


@contextmanager
def _exporting(what: Graph) -> Iterator[None]:
    """Without gradients and the exporters' own talk; what they refuse is a `UserError` that says why."""
    told = logging.getLogger("torch"), logging.getLogger("onnxscript"), logging.getLogger("onnx_ir")
    levels = [each.level for each in told]
    try:
        for each in told:
            each.setLevel(logging.CRITICAL)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except Exception as error:
        first: BaseException = error  # the first cause says most
        while (cause := first.__cause__ or first.__context__) is not None:
            first = cause
        kind = type(getattr(what, "network", what)).__name__
        raise UserError(f"{kind} cannot be exported: {one_line(str(first) or str(error), 300)}") from None
    finally:
        for each, level in zip(told, levels, strict=True):
            each.setLevel(level)


def _shapes(example: Tensor) -> dict[int, Any]:
    """Any number of rows, of any length."""
    return {0: torch.export.Dim.DYNAMIC, example.ndim - 1: torch.export.Dim.DYNAMIC}


def _to_onnx(graph: Graph, name: str, example: Tensor, outputs: Sequence[str], facts: Mapping[str, str]) -> bytes:
    with _exporting(graph):
        import onnx
        from onnx_ir.passes.common import ClearMetadataAndDocStringPass

        program = torch.onnx.export(
            graph,
            (example, *graph.speaker),
            input_names=[name, *(SCALES if graph.speaker else ())],
            output_names=list(outputs),
            dynamic_shapes=(_shapes(example), *({} for _ in graph.speaker)),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        ClearMetadataAndDocStringPass()(program.model)  # stack traces, with paths of this machine
        model = program.model_proto
        onnx.helper.set_model_props(model, dict(facts))
        model.producer_name = "ser_fl"
        for scale, values in zip(SCALES, graph.speaker, strict=False):
            if not values.isnan().any():  # an input with a default
                model.graph.initializer.append(onnx.numpy_helper.from_array(values.numpy(), scale))
        onnx.checker.check_model(model)
        content: bytes = model.SerializeToString()
    return content


def _open_onnx(content: bytes) -> Answers:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of inputs that have a default
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    (name,) = {each.name for each in session.get_inputs()} - {*SCALES}

    def answers(inputs: Tensor, scales: Mapping[str, Tensor]) -> list[Tensor]:
        given = {name: inputs.numpy(), **{key: value.numpy() for key, value in scales.items()}}
        return [torch.from_numpy(each) for each in session.run(None, given)]

    return answers


def _to_torch(graph: Graph, name: str, example: Tensor, outputs: Sequence[str], facts: Mapping[str, str]) -> bytes:
    with _exporting(graph):
        program = torch.export.export(graph, (example,), dynamic_shapes=(_shapes(example),))
        for module in program.graph_module.modules():
            for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
                node.meta.pop("stack_trace", None)  # paths of this machine
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files=dict(facts))
    return buffer.getvalue()


def _open_torch(content: bytes) -> Answers:
    module: Any = torch.export.load(io.BytesIO(content)).module()

    def answers(inputs: Tensor, scales: Mapping[str, Tensor]) -> list[Tensor]:
        told = {key: getattr(module, key).clone() for key in scales}
        with torch.no_grad():
            for key, value in scales.items():
                getattr(module, key).copy_(value)
            found = list(module(inputs))
            for key, value in told.items():
                getattr(module, key).copy_(value)
        return found

    return answers


FORMATS: Mapping[str, Format] = {
    "onnx": Format(".onnx", _to_onnx, _open_onnx),
    "torch": Format(".pt2", _to_torch, _open_torch),
}
