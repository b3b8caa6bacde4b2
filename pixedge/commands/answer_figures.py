"""What an answer took: the object of --json, and the line behind the answer."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixedge.commands.peak_memory import peak_memory
from pixedge.terminal import size

if TYPE_CHECKING:
    from pixedge.model import Answer, Model
    from pixedge.sampling import SamplingParams


def record(
    answer: "Answer", model: "Model", folder: Path, decode_seconds: float, total: float
) -> dict[str, Any]:
    """Give the object that --json prints.

    decode_seconds is what reading and decoding the pictures took before the model was asked, total what the
    whole command took.
    """
    timings = answer.timings
    seconds = {
        "load": model.load_seconds,
        "image_decode": decode_seconds + timings.image_decode,
        "encode": timings.encode,
        "prefill": timings.prefill,
        "first_token": timings.first_token,
        "decode": timings.decode,
        "total": total,
    }
    return {
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "model": str(folder),
        "prompt_tokens": answer.prompt_tokens,
        "image_tokens": answer.image_tokens,
        "cached_tokens": answer.cached_tokens,
        "completion_tokens": answer.completion_tokens,
        "kv_cache": {"bits": model.engine.kv_bits, "tokens": model.engine.cache.tokens},
        "seed": answer.seed,
        "seconds": {name: round(value, 6) for name, value in seconds.items()},
        "tokens_per_second": answer.tokens_per_second,
        "peak_memory_bytes": peak_memory(),
    }


def logprobs(answer: "Answer", model: "Model") -> list[dict[str, Any]]:
    """Give each token with its text (a part of a character shows as U+FFFD), and the likeliest beside it."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        text = model.tokenizer.token_bytes(token).decode("utf-8", errors="replace")
        return {"id": token, "text": text, "logprob": logprob}

    return [
        {**entry(token.id, token.logprob), "top": [entry(*other) for other in token.top_logprobs]}
        for token in answer.tokens
    ]


def cut(answer: "Answer", params: "SamplingParams") -> str:
    """Say why the answer ends early; for a finish_reason of "length"."""
    lost = f"; it does not match the {params.answer_format.noun}" if params.answer_format else ""
    if answer.completion_tokens >= params.max_tokens:
        end = f"after {params.max_tokens} tokens"
        return f"the answer was cut {end}{lost}; a greater --max-tokens lets it go on"
    end = f"after {answer.completion_tokens} tokens because the model's context is full"
    return f"the answer was cut {end}{lost}"


def figures(answer: "Answer", model: "Model", n_pictures: int) -> str:
    """Give the line of figures that follows the answer."""
    pictures = "1 picture" if n_pictures == 1 else f"{n_pictures} pictures"
    rate = answer.tokens_per_second
    among = [f"{answer.image_tokens} from {pictures}"] if n_pictures else []
    among += [f"{answer.cached_tokens} known"] if answer.cached_tokens else []
    parts = [
        f"prompt {answer.prompt_tokens} tokens" + (f" ({', '.join(among)})" if among else ""),
        f"answer {answer.completion_tokens} tokens" + ("" if rate is None else f" at {rate:.1f} tokens/s"),
        f"first token after {answer.timings.first_token:.2f} s",
        f"load {model.load_seconds:.2f} s",
    ]
    return ", ".join(parts)


def stages(answer: "Answer") -> str:
    """Give the tokens of an answer and the seconds that it took by stage."""
    timings, rate = answer.timings, answer.tokens_per_second
    parts = [
        f"prompt {answer.prompt_tokens} tokens",
        f"{answer.image_tokens} of them from pictures, {answer.cached_tokens} known from before",
        f"answer {answer.completion_tokens} tokens" + ("" if rate is None else f" at {rate:.1f} tokens/s"),
        f"pictures {timings.image_decode:.2f} s",
        f"encoder {timings.encode:.2f} s",
        f"prompt {timings.prefill:.2f} s",
        f"first token after {timings.first_token:.2f} s",
        f"rest {timings.decode:.2f} s",
    ]
    return ", ".join(parts)


def memory(model: "Model") -> str:
    """Give the cache's size and the most memory that the process had."""
    cache = f"cache {model.engine.cache.tokens:,} tokens in {model.engine.kv_bits} bits"
    peaks = [f"most {name} memory so far {size(peak)}" for name, peak in peak_memory().items() if peak]
    return ", ".join([cache, *peaks])
