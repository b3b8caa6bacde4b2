"""From a folder or a shape to a profile: limits, loading, rows, limits once more."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import pixedge
from pixedge.artifact import open_artifact
from pixedge.cards import CPU_REFERENCE, card_machine
from pixedge.config import ModelConfig
from pixedge.loading import DTYPES, TOKENIZER_FILE, choose_device
from pixedge.prediction import Machine
from pixedge.profile.bench import Bench
from pixedge.profile.limits import Limits, measure_limits
from pixedge.profile.memory_meter import MemoryMeter
from pixedge.profile.picture_rows import read_file
from pixedge.profile.profiler import PROFILE, Report, measure
from pixedge.profile.record import profile_record
from pixedge.profile.settings import Settings
from pixedge.profile.spans import Recorder
from pixedge.profile.subject import Subject, random_subject, refuse_what_cannot_fit
from pixedge.profile.trace import trace
from pixedge.profile.trials import Trials


@dataclass(frozen=True)
class Profiled:
    """The object that --json prints, and what happened when."""

    record: dict[str, Any]
    recorder: Recorder

    def trace(self) -> dict[str, Any]:
        """Return the object of the trace's file."""
        return trace(self.recorder.spans, self.recorder.began, self.record["model"]["name"])


def profile_folder(folder: Path, options: Mapping[str, Any], settings: Settings, report: Report) -> Profiled:
    """Profile an exported folder; options are the arguments of ``pixedge.load``, whose errors are raised."""
    artifact = open_artifact(folder)

    def load(given: Mapping[str, Any]) -> Subject:
        model = pixedge.load(folder, **given, progress=report)
        return Subject(folder.resolve().name, model, model.config)

    return _profile(artifact.config, options, settings, report, load)


def profile_random(
    name: str,
    config: ModelConfig,
    layers: int | None,
    options: Mapping[str, Any],
    settings: Settings,
    report: Report,
) -> Profiled:
    """Profile random weights in the shape ``config``, with ``layers`` of the decoder's; None is all.

    Needs the export stage, which makes the encoder. Raises CapacityError when memory cannot hold it.
    """
    from pixedge_export.synthetic import write_tokenizer
    from pixedge_export.synthetic_encoder import write_encoder

    made = replace(config, decoder=replace(config.decoder, n_layers=layers or config.decoder.n_layers))
    options = _with_cache(made, options, settings)
    refuse_what_cannot_fit(made, options)
    with tempfile.TemporaryDirectory(prefix="pixedge-profile-") as place:
        folder = Path(place)
        report("make the encoder", 0, 1)
        write_encoder(folder, made)
        write_tokenizer(folder / TOKENIZER_FILE, made)
        report("make the encoder", 1, 1)

        def load(given: Mapping[str, Any]) -> Subject:
            report("make the decoder", 0, 1)
            subject = random_subject(name, config, made.decoder.n_layers, folder, **given)
            report("make the decoder", 1, 1)
            return subject

        return _profile(made, options, settings, report, load)


def _profile(
    config: ModelConfig,
    options: Mapping[str, Any],
    settings: Settings,
    report: Report,
    load: Callable[[Mapping[str, Any]], Subject],
) -> Profiled:
    device = choose_device(options["device"])
    dtype = DTYPES.get(options["dtype"], torch.bfloat16)
    if options["threads"] is not None:
        torch.set_num_threads(options["threads"])
    options = _with_cache(config, options, settings)
    meter, recorder = MemoryMeter(device), Recorder()
    report("limits", 0, 1)
    with recorder.span(PROFILE, "limits"):
        limits = measure_limits(device, dtype)
    report("limits", 1, 1)
    with meter.phase("start"):
        pass
    with meter.phase("load"), recorder.span(PROFILE, "load"):
        subject = load(options)
    bench = Bench(subject, settings, Trials(subject.model))
    findings = measure(bench, meter, recorder, report)
    with recorder.span(PROFILE, "limits"):
        limits = limits.and_later(measure_limits(device, dtype))
    record = profile_record(bench, findings, limits, meter.peaks, _machine(device, limits))
    return Profiled(record, recorder)


def _with_cache(config: ModelConfig, options: Mapping[str, Any], settings: Settings) -> Mapping[str, Any]:
    """Take a cache for what is measured, where no other is asked for: more would only blur the memory."""
    if options["context"] is not None:
        return options
    sizes = [read_file(data).size for data in settings.pictures]
    return {**options, "context": settings.cache_tokens(config, sizes)}


def _machine(device: torch.device, limits: Limits) -> Machine:
    """Return this machine, with the shares of its limits that a prediction goes by."""
    speeds = (limits.bytes_per_second, limits.operations_per_second)
    if device.type == "cuda":
        return card_machine(torch.cuda.get_device_name(device), *speeds)
    return replace(CPU_REFERENCE, name="CPU", bandwidth=speeds[0], operations=speeds[1])
