"""Turn layers of a network into MNN's own format: a program of its own, started by :mod:`geoseg.mnn`.

    python -m geoseg.mnn_layers FOLDER

Of its own, so that neither onnx nor MNN's converter, which talks on standard output, comes into a process that
computes. FOLDER holds ``NAME.json`` (operation, attributes, channels, whether a ReLU follows) and ``NAME.npz``
(weights) for each layer, and gets ``NAME.mnn``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def write_layer(folder: Path, name: str, facts: dict[str, Any], weights: dict[str, NDArray[np.float32]]) -> None:
    """Write what :func:`convert` reads.

    Args:
        folder: Where.
        name: Of the files.
        facts: ``operation`` of ONNX, its ``attributes``, ``channels`` in and out (None for any), ``relu``.
        weights: The operation's inputs after the first, in their order.
    """
    np.savez(folder / f"{name}.npz", **weights)  # type: ignore[arg-type]
    (folder / f"{name}.json").write_text(json.dumps(facts), "utf-8")


def convert(folder: Path, name: str) -> None:
    """Write one layer as ONNX, then as MNN; height and width of its input are free."""
    import _tools  # MNN's converter; its command line tool would report its use to the network
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    facts = json.loads((folder / f"{name}.json").read_text("utf-8"))
    with np.load(folder / f"{name}.npz") as stored:
        weights = [numpy_helper.from_array(stored[key], key) for key in stored.files]
    relu, (channels_in, channels_out) = facts["relu"], facts["channels"]
    inputs = ["x", *(weight.name for weight in weights)]
    nodes = [helper.make_node(facts["operation"], inputs, ["plain" if relu else "y"], **facts["attributes"])]
    if relu:
        nodes.append(helper.make_node("Relu", ["plain"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels_in or "c", "h", "w"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, channels_out or "c", "h2", "w2"])],
        weights,
    )
    source, target = folder / f"{name}.onnx", folder / f"{name}.mnn"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(source))
    files = ["--modelFile", str(source), "--MNNModel", str(target)]
    _tools.mnnconvert(["mnnconvert", "-f", "ONNX", *files, "--bizCode", "geoseg", "--keepInputFormat", "0"])


if __name__ == "__main__":
    for path in sorted(Path(sys.argv[1]).glob("*.json")):
        convert(path.parent, path.stem)
