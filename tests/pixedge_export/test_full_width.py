"""A random checkpoint of Pixtral-12B's width, from nothing to an answer, with its time and memory.

Every step is a process of its own, so that each peak is that step's alone; this file is also their program.
"""

import json
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from pixedge.config import ModelConfig
from tests.exported_demo import ROOT, environment

TOKENS, N_SAMPLES, ANSWER = 512, 20, 6  # of 20 samples, 16 are calibrated on
GIB = 2**30


def make(config: ModelConfig, layout: str, base: Path) -> object:
    """Write the checkpoint."""
    from pixedge_export.synthetic import write_synthetic

    write_synthetic(base / "model", config, layout)
    return sum(file.stat().st_size for file in (base / "model").iterdir())


def samples(config: ModelConfig, layout: str, base: Path) -> object:
    """Save samples of 512 tokens, half of them with a picture: those of the mix, made longer at the end."""
    from pixedge.tokenizer import Tokenizer
    from pixedge_export.calibration import default_samples, encode_samples

    tokenizer = Tokenizer(base / "model" / "tekken.json", config.vision)
    folder = base / "samples"
    folder.mkdir()
    lines: dict[bool, list[str]] = {True: [], False: []}
    tokens = 0
    for number, sample in enumerate(default_samples(1, 10 * N_SAMPLES)):
        chosen = lines[sample.has_picture]
        (encoded,) = encode_samples([sample], tokenizer, 4096)
        missing = TOKENS - len(encoded.prompt.ids)
        if missing < 0 or len(chosen) == N_SAMPLES // 2:
            continue
        sample.messages[-1]["content"] += " more" * missing
        tokens += TOKENS
        for message in sample.messages:
            for at, part in enumerate(message["content"] if isinstance(message["content"], list) else []):
                if part["type"] == "image":
                    name = f"{number}-{at}.png"
                    part["image"].save(folder / name)
                    part["image"] = name
        chosen.append(json.dumps({"messages": sample.messages}))
    assert all(len(chosen) == N_SAMPLES // 2 for chosen in lines.values())
    (folder / "calibration.jsonl").write_text("\n".join(lines[True] + lines[False]), encoding="utf-8")
    return tokens


def export(config: ModelConfig, layout: str, base: Path) -> object:
    """Export with GPTQ."""
    from pixedge_export.pipeline import Recipe
    from pixedge_export.pipeline import export as run

    seconds: dict[str, float] = {}
    start = time.perf_counter()
    run(
        base / "model",
        base / "artifact",
        Recipe(group_size=128 if config.decoder.dim % 128 == 0 else 32),
        calibration=base / "samples",
        device="cpu",
        report=lambda event: seconds.update({event.phase: round(time.perf_counter() - start, 1)}),
    )
    report = json.loads((base / "artifact" / "export_report.json").read_text(encoding="utf-8"))
    errors = report["linear_errors"]
    return {
        "until the end of": seconds,
        "bytes": sum(file.stat().st_size for file in (base / "artifact").iterdir()),
        "divergence": report["divergence_from_16_bits"],
        "worst": max(error["quantized"] / error["rtn"] for error in errors),
        "linears": len(errors),
    }


def ask(config: ModelConfig, layout: str, base: Path) -> object:
    """Load the export and have it answer a few tokens about a picture of its largest size."""
    import pixedge

    model = pixedge.load(base / "artifact", device="cpu")
    side = config.vision.image_size
    picture = Image.linear_gradient("L").resize((side, side * 3 // 4)).convert("RGB")
    parts = [{"type": "image", "image": picture}, {"type": "text", "text": "What is this?"}]
    answer = model.generate([{"role": "user", "content": parts}], pixedge.SamplingParams(max_tokens=ANSWER))
    return {
        "load": model.load_seconds,
        "image_tokens": answer.image_tokens,
        "tokens": [token.id for token in answer.tokens],
        "encode": answer.timings.encode,
        "prefill": answer.timings.prefill,
        "decode": answer.timings.decode,
    }


STEPS = (make, samples, export, ask)


def run_steps(config: ModelConfig, layout: str, base: Path) -> dict[str, dict]:
    """Run all steps, each in a fresh process, and remove what they wrote."""
    (base / "params.json").write_text(json.dumps(config.to_params()))
    found = {}
    try:
        for step in STEPS:
            command = [sys.executable, __file__, step.__name__, layout, str(base)]
            done = subprocess.run(command, cwd=ROOT, env=environment(base), capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            found[step.__name__] = json.loads(done.stdout.splitlines()[-1])
    finally:
        for name in ("model", "samples", "artifact"):
            shutil.rmtree(base / name, ignore_errors=True)
    return found


def check(found: dict[str, dict], config: ModelConfig) -> None:
    exported, asked = found["export"]["result"], found["ask"]["result"]
    assert exported["linears"] == 7 * config.decoder.n_layers
    assert exported["worst"] < 1
    for method in ("rtn", "gptq"):
        assert all(kind["tokens"] > 0 for kind in exported["divergence"][method].values())
    side = config.vision.image_size // config.vision.patch_size
    assert asked["image_tokens"] == side * (side * 3 // 4)
    assert 1 <= len(asked["tokens"]) <= ANSWER


def test_the_steps_on_a_small_model(tmp_path: Path) -> None:
    """The same steps in this process, so that the slow test cannot fail for a reason that is not slow."""
    from tests.small_exports import CONFIG

    check({step.__name__: {"result": step(CONFIG, "hf", tmp_path)} for step in STEPS}, CONFIG)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["mistral", "hf"])
def test_pixtrals_width(layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two decoder layers and all 24 of the encoder; about 9 GB of disk."""
    from pixedge_export.synthetic import PIXTRAL_12B

    config = replace(PIXTRAL_12B, decoder=replace(PIXTRAL_12B.decoder, n_layers=2))
    found = run_steps(config, layout, tmp_path)
    with capsys.disabled():
        print(f"\nPixtral-12B's shape, 2 + 24 layers, {layout} layout:")
        for step, figures in found.items():
            seconds, peak = figures["seconds"], figures["peak_rss"] / GIB
            print(f"  {step:8} {seconds:7.1f} s {peak:6.2f} GiB  {figures['result']}")
    check(found, config)
    assert found["export"]["peak_rss"] < 6 * GIB
    assert found["ask"]["peak_rss"] < 12 * GIB


def main() -> None:
    """Run one step and print what it gave, its seconds and its peak memory, as JSON."""
    step, layout, base = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    config = ModelConfig.load(base)
    start = time.perf_counter()
    (result,) = (run(config, layout, base) for run in STEPS if run.__name__ == step)
    seconds = time.perf_counter() - start
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(json.dumps({"result": result, "seconds": seconds, "peak_rss": peak}))


if __name__ == "__main__":
    main()
