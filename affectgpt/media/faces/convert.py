"""Write the networks of `weights/` from MediaPipe's TFLite files; a development tool, needs `ai-edge-litert`.

    python -m affectgpt.media.faces.convert face_detection_full_range.tflite weights/detector.safetensors

The tensors are stored in 16 bits, and the operators as JSON in the file's metadata; `network.py` runs them.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


def convert(source: Path, target: Path) -> None:
    from ai_edge_litert import schema_py_generated as schema
    from safetensors.numpy import save_file

    data = source.read_bytes()
    model = schema.Model.GetRootAsModel(data, 0)
    graph = model.Subgraphs(0)
    names = {value: key for key, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    kinds = {0: np.float32, 1: np.float16, 2: np.int32}
    constants: dict[int, np.ndarray] = {}
    for number in range(graph.TensorsLength()):
        tensor = graph.Tensors(number)
        raw = model.Buffers(tensor.Buffer()).DataAsNumpy()
        if not isinstance(raw, int) and len(raw):
            constants[number] = np.frombuffer(raw.tobytes(), kinds[tensor.Type()]).reshape(tensor.ShapeAsNumpy())
    weights: dict[str, np.ndarray] = {}
    operators: list[dict[str, Any]] = []

    def weight(number: int, kind: str) -> str:
        values = constants[number]
        if kind == "CONV_2D" and values.ndim == 4:
            values = values.transpose(0, 3, 1, 2)  # OHWI -> OIHW
        elif kind == "DEPTHWISE_CONV_2D" and values.ndim == 4:
            values = values.transpose(3, 0, 1, 2)  # 1HWC -> C1HW
        elif kind == "PRELU":
            values = values.reshape(-1)
        weights[f"{number}"] = np.ascontiguousarray(values, np.float16)
        return f"{number}"

    def options(operator: Any, kind: str) -> Any:
        made = getattr(schema, kind)()
        made.Init(operator.BuiltinOptions().Bytes, operator.BuiltinOptions().Pos)
        return made

    for place in range(graph.OperatorsLength()):
        operator = graph.Operators(place)
        code = model.OperatorCodes(operator.OpcodeIndex())
        kind = names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
        inputs, (output,) = operator.InputsAsNumpy().tolist(), operator.OutputsAsNumpy().tolist()
        if kind == "DEQUANTIZE":
            constants[output] = constants[inputs[0]].astype(np.float32)
            continue
        step: dict[str, Any] = {"op": kind.lower(), "in": [number for number in inputs if number not in constants]}
        step["out"] = output
        if kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            found = options(operator, "Conv2DOptions" if kind == "CONV_2D" else "DepthwiseConv2DOptions")
            step |= {"weight": weight(inputs[1], kind), "bias": weight(inputs[2], kind)}
            step |= {"stride": found.StrideH(), "same": found.Padding() == 0}
        elif kind == "MAX_POOL_2D":
            found = options(operator, "Pool2DOptions")
            assert found.FilterHeight() == found.StrideH() == 2
        elif kind == "ADD":
            found = options(operator, "AddOptions")
        elif kind == "CONCATENATION":
            found = None
            step["axis"] = options(operator, "ConcatenationOptions").Axis()
        elif kind == "PRELU":
            found, step["weight"] = None, weight(inputs[1], kind)
        elif kind == "RESHAPE":
            found, step["value"] = None, options(operator, "ReshapeOptions").NewShapeAsNumpy().tolist()
        elif kind in ("PAD", "RESIZE_BILINEAR"):
            found, step["value"] = None, constants[inputs[1]].tolist()
            if kind == "RESIZE_BILINEAR":
                step["half_pixel"] = bool(options(operator, "ResizeBilinearOptions").HalfPixelCenters())
        else:
            assert kind == "RELU", kind
            found = None
        if found is not None and (activation := found.FusedActivationFunction()):
            assert activation == 1, activation  # RELU
            step["relu"] = True
        operators.append(step)
    outputs = graph.OutputsAsNumpy().tolist()
    made_of = {"input": graph.InputsAsNumpy().tolist()[0], "outputs": outputs, "operators": operators}
    made_of["shape"] = graph.Tensors(made_of["input"]).ShapeAsNumpy().tolist()
    metadata = {
        "graph": json.dumps(made_of, separators=(",", ":")),
        "source": source.name,
        "source_sha256": hashlib.sha256(data).hexdigest(),
        "license": "Apache-2.0, The MediaPipe Authors",
    }
    save_file(weights, target, metadata)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
