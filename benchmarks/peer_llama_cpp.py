"""Time llama.cpp on random 4-bit weights in the shape of Pixtral-12B's decoder, to be laid beside ours.

    python -m venv llama && llama/bin/pip install llama-cpp-python gguf      # compiles, some ten minutes
    llama/bin/python benchmarks/peer_llama_cpp.py --layers 2 6

It needs nothing of pixedge, and is run by an environment of its own. With two numbers of layers the time
of all 40 follows from the line through both: head + layers x each. The output head is part of the work; it
has the same 4-bit type as the rest. Times are medians; the last line is JSON.

Where it dies of a segmentation fault, the build's AMX code is what fails: reinstall with
CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX512=ON -DGGML_AVX512_VNNI=ON -DGGML_AVX512_BF16=ON".
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

DIM, FFN, HEADS, KV_HEADS, HEAD_DIM, VOCAB, LAYERS = 5120, 14336, 32, 8, 128, 131072, 40


def write_model(path: Path, layers: int, kind: str) -> None:
    """Write a GGUF file of random blocks, all with the same scale."""
    import gguf

    stored_as = getattr(gguf.GGMLQuantizationType, kind)
    block, block_bytes = gguf.GGML_QUANT_SIZES[stored_as]
    scale = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(layers)
    writer.add_context_length(131072)
    writer.add_embedding_length(DIM)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e9)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("tekken")
    writer.add_token_list([f"t{number}" for number in range(VOCAB)])
    writer.add_token_types([1] * VOCAB)
    writer.add_token_merges(["t 1"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    shapes = {"token_embd": (VOCAB, DIM), "output": (VOCAB, DIM)}
    for index in range(layers):
        shapes |= {
            f"blk.{index}.attn_q": (HEADS * HEAD_DIM, DIM),
            f"blk.{index}.attn_k": (KV_HEADS * HEAD_DIM, DIM),
            f"blk.{index}.attn_v": (KV_HEADS * HEAD_DIM, DIM),
            f"blk.{index}.attn_output": (DIM, HEADS * HEAD_DIM),
            f"blk.{index}.ffn_gate": (FFN, DIM),
            f"blk.{index}.ffn_up": (FFN, DIM),
            f"blk.{index}.ffn_down": (DIM, FFN),
        }
    for name, (rows, columns) in shapes.items():
        data = random.integers(0, 256, (rows, columns // block, block_bytes), dtype=np.uint8)
        data[:, :, :2] = scale
        writer.add_tensor(f"{name}.weight", data.reshape(rows, -1), raw_dtype=stored_as)
    norms = ["output_norm", *(f"blk.{i}.{part}_norm" for i in range(layers) for part in ("attn", "ffn"))]
    for name in norms:
        writer.add_tensor(f"{name}.weight", np.ones(DIM, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def measure(
    path: Path, prompts: list[int], tokens: int, repeats: int, threads: int, gpu: bool
) -> dict[str, float]:
    """Return seconds of each prompt, as "prompt 512", and of one token behind the first of them."""
    import llama_cpp

    model = llama_cpp.Llama(
        str(path),
        n_ctx=max(prompts) + tokens + 8,
        n_threads=threads,
        n_threads_batch=threads,
        n_batch=512,
        n_gpu_layers=-1 if gpu else 0,
        verbose=False,
    )
    ids = [7 * i % 1000 + 10 for i in range(max(prompts))]
    model.eval(ids[:32])
    found = {}
    for length in prompts:
        times = []
        for _ in range(repeats):
            model.reset()
            start = time.perf_counter()
            model.eval(ids[:length])
            times.append(time.perf_counter() - start)
        found[f"prompt {length}"] = statistics.median(times)
    model.reset()
    model.eval(ids[: prompts[0]])
    times = []
    for number in range(tokens):
        start = time.perf_counter()
        model.eval([11 + number])
        times.append(time.perf_counter() - start)
    return found | {"token": statistics.median(times)}


def main() -> None:
    """Measure, print a table and the JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, nargs=2, default=[2, 6], help="two numbers (default 2 6)")
    parser.add_argument("--prompts", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--tokens", type=int, default=24, help="tokens to decode (default 24)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--kind", choices=["Q4_0", "Q4_K", "Q8_0"], default="Q4_0")
    parser.add_argument("--gpu", action="store_true", help="run all layers on the GPU of a build for CUDA")
    args = parser.parse_args()
    import llama_cpp

    few, many = sorted(args.layers)
    found = {}
    for layers in (few, many):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            write_model(path, layers, args.kind)
            found[layers] = measure(path, args.prompts, args.tokens, args.repeats, args.threads, args.gpu)
    whole = {}
    for what in found[few]:
        each = (found[many][what] - found[few][what]) / (many - few)
        whole[what] = found[few][what] + (LAYERS - few) * each
        print(
            f"{what:14}{few:4} layers {1e3 * found[few][what]:9.1f} ms{many:6} layers "
            f"{1e3 * found[many][what]:9.1f} ms{LAYERS:6} layers {1e3 * whole[what]:9.1f} ms"
        )
    summary: dict[str, Any] = {
        "engine": f"llama.cpp (llama-cpp-python {llama_cpp.__version__})",
        "kind": args.kind,
        "threads": args.threads,
        "gpu": args.gpu,
        "layers": LAYERS,
        "seconds": {what: round(seconds, 6) for what, seconds in whole.items()},
        "measured": {str(layers): found[layers] for layers in found},
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
