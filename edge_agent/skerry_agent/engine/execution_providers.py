"""The execution providers of ONNX Runtime that the agent can use, and the options of each: one table, and no code.

A provider that the installed ONNX Runtime was built without is simply not available. Providers other than the CPU's may
leave operators to the CPU; what each must do itself is in ``whole``. Options that name a folder get the cache of the
slot. Sources: the provider pages of onnxruntime.ai; options of TensorRT as of ONNX Runtime 1.18 and later.
"""

from __future__ import annotations

from dataclasses import dataclass, field

CPU = "CPUExecutionProvider"
#: Stands in options for the folder of the cache and for the shapes of the smallest, usual and largest batch.
CACHE, SMALLEST, USUAL, LARGEST = "{cache}", "{smallest}", "{usual}", "{largest}"

_FLOATS = frozenset({"fp32", "fp16"})
_EVERY_FORM: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ExecutionProvider:
    """One provider.

    Attributes:
        backend: Name of its backend.
        provider: Its name in ONNX Runtime.
        forms: Forms that are worth a try on it; empty means every form.
        ort_files: Whether it runs onnxruntime's flat form.
        options: Provider options; see the constants above for what stands in them.
        whole: Whether it must compute everything, so that a graph that it leaves to the CPU in part is refused.
        compiles: Whether it compiles a graph for long when it loads it.
        device: What it runs on, for people.
    """

    backend: str
    provider: str
    forms: frozenset[str]
    ort_files: bool = False
    options: dict[str, str] = field(default_factory=dict)
    whole: bool = False
    compiles: bool = False
    device: str = ""


#: In the order in which they are tried; the CPU is last, and everywhere.
PROVIDERS: tuple[ExecutionProvider, ...] = (
    ExecutionProvider(
        backend="onnxruntime-tensorrt",
        provider="TensorrtExecutionProvider",
        forms=frozenset({"fp32", "fp16", "int8-qdq"}),
        options={
            # int8 in a graph with Q/DQ means explicit quantisation: the flag allows it and calibrates nothing.
            "trt_int8_enable": "1",
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": CACHE,
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": CACHE,
            "trt_max_workspace_size": str(256 << 20),
            "trt_profile_min_shapes": SMALLEST,
            "trt_profile_opt_shapes": USUAL,
            "trt_profile_max_shapes": LARGEST,
        },
        compiles=True,
        device="NVIDIA GPU, engines by TensorRT",
    ),
    ExecutionProvider(
        backend="onnxruntime-cuda",
        provider="CUDAExecutionProvider",
        forms=_FLOATS,
        options={
            # The default searches every algorithm at the first run of every shape.
            "cudnn_conv_algo_search": "HEURISTIC",
            "arena_extend_strategy": "kSameAsRequested",
        },
        device="NVIDIA GPU",
    ),
    ExecutionProvider(
        backend="onnxruntime-qnn",
        provider="QNNExecutionProvider",
        forms=frozenset({"int8-qdq", "int8-x86"}),
        options={"backend_path": "libQnnHtp.so", "htp_performance_mode": "balanced", "enable_htp_fp16_precision": "0"},
        compiles=True,
        device="Qualcomm NPU",
    ),
    ExecutionProvider(
        backend="onnxruntime-coreml",
        provider="CoreMLExecutionProvider",
        forms=_FLOATS,
        options={"ModelFormat": "MLProgram", "MLComputeUnits": "ALL", "ModelCacheDirectory": CACHE},
        compiles=True,
        device="Apple GPU or neural engine",
    ),
    ExecutionProvider(
        backend="onnxruntime-nnapi",
        provider="NnapiExecutionProvider",
        forms=frozenset({"fp32", "int8-qdq", "int8-x86"}),
        device="Android NNAPI",
    ),
    ExecutionProvider(
        backend="onnxruntime-xnnpack",
        provider="XnnpackExecutionProvider",
        forms=frozenset({"fp32", "int8-qdq"}),
        options={"intra_op_num_threads": "1"},
        device="CPU by XNNPACK",
    ),
    ExecutionProvider(backend="onnxruntime", provider=CPU, forms=_EVERY_FORM, ort_files=True, whole=True, device="CPU"),
)
