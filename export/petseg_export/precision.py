"""Mixed precision, decided in the ONNX graph: TensorRT builds each layer in the type that it finds there."""

from __future__ import annotations

import onnx

from petseg_runtime.errors import UsageError

try:
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel
except ImportError as missing:
    raise UsageError("--precision fp16 needs ONNX Runtime. Install petseg[onnxruntime] or petseg[gpu].") from missing

# Variances and sums over a window overflow fp16 (largest value 65,504).
_SUMMING = ["InstanceNormalization", "ReduceMean"]


def to_mixed_fp16(model: bytes, turing: bool = False) -> bytes:
    """The model with convolutions in fp16; norms, global means and the head stay in f32, as do input and output.

    The head is the last convolution with its sigmoid: there a rounding would move the mask's edge. On Turing, which
    has no f32 convolution in three dimensions, it is the sigmoid alone.
    """
    graph = onnx.load_from_string(model)
    convolutions = [node.name for node in graph.graph.node if node.op_type == "Conv"]
    sigmoids = [node.name for node in graph.graph.node if node.op_type == "Sigmoid"]
    mixed = convert_float_to_float16(
        graph,
        keep_io_types=True,
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_SUMMING],
        node_block_list=[sigmoids[-1]] if turing else [convolutions[-1], sigmoids[-1]],
    )
    _restore_weights(mixed, onnx.load_from_string(model))
    OnnxModel(mixed).topological_sort()  # the conversion puts its casts last, and ONNX wants what is read before
    content: bytes = mixed.SerializeToString()
    return content


def _restore_weights(mixed: onnx.ModelProto, original: onnx.ModelProto) -> None:
    """Give layers that stay in f32 the weights that they had, where the conversion cast rounded ones back."""
    weights = {tensor.name: tensor for tensor in original.graph.initializer}
    casts = [node for node in mixed.graph.node if node.op_type == "Cast" and node.input[0] in weights]
    for cast in casts:
        tensor = onnx.TensorProto()
        tensor.CopyFrom(weights[cast.input[0]])
        tensor.name = cast.output[0]  # what read the cast reads the weights themselves
        mixed.graph.initializer.append(tensor)
        mixed.graph.node.remove(cast)
    used = {name for node in mixed.graph.node for name in node.input}
    for tensor in [tensor for tensor in mixed.graph.initializer if tensor.name not in used]:
        mixed.graph.initializer.remove(tensor)
