"""The prediction of time: against what was measured and recorded, and against itself."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from pixedge.cards import CARDS, CPU_REFERENCE, card_machine, find_card
from pixedge.errors import UsageError
from pixedge.known_shapes import PIXTRAL_12B
from pixedge.prediction import Machine, Stage, decode_step, encode, predict, prefill_chunks

SPEED = json.loads((Path(__file__).parents[2] / "docs" / "speed.json").read_text(encoding="utf-8"))
DECODER = PIXTRAL_12B.decoder
MACHINE = Machine("one", 1e12, 1e14, ((1, 0.5), (4, 0.25)), 0.5, 0.5, measured=False)


def test_a_token_moves_as_many_bytes_as_the_benchmark_counts() -> None:
    step = decode_step(DECODER, layout="cpu")
    assert step.bytes == pytest.approx(SPEED["decoder"]["bytes_per_token"], rel=1e-3)


def seconds(prompt: int = 1, context: int = 0, batch: int = 1, bits: int = 8) -> tuple[float, float]:
    """Give the predicted seconds of a step and of a prompt on the machine of docs/speed.json."""
    found = predict(
        PIXTRAL_12B, CPU_REFERENCE, prompt=prompt, context=context, batch=batch, kv_bits=bits, layout="cpu"
    )
    return found.decode.seconds, found.prefill.seconds


def test_the_reference_machine_is_that_of_the_recorded_run() -> None:
    found = SPEED["decoder"]
    assert found["read_bytes_per_second"] == pytest.approx(CPU_REFERENCE.bandwidth, rel=0.01)
    assert found["product_operations_per_second"] == pytest.approx(CPU_REFERENCE.operations, rel=0.01)


@pytest.mark.parametrize("case", SPEED["decoder"]["cases"], ids=lambda case: json.dumps(case)[:58])
def test_what_was_measured_is_what_is_predicted(case: dict) -> None:
    step, prompt = seconds(case["tokens"], case["context"], case["batch"], case["bits"])
    assert (step if case["tokens"] == 1 else prompt) == pytest.approx(case["seconds"], rel=0.15)


@pytest.mark.parametrize("case", SPEED["growth"][0]["cases"], ids=lambda case: f"context {case['context']}")
def test_long_contexts_are_as_slow_as_measured(case: dict) -> None:
    assert seconds(context=case["context"])[0] == pytest.approx(case["seconds"], rel=0.2)


@pytest.mark.parametrize("case", SPEED["vision"]["pictures"], ids=lambda case: f"{case['side']} pixels")
def test_pictures_take_as_long_as_measured(case: dict) -> None:
    side = case["side"]
    limit = encode(PIXTRAL_12B, side, side).limit(CPU_REFERENCE)
    assert limit / CPU_REFERENCE.encode == pytest.approx(case["seconds"]["ours"], rel=0.1)


def test_the_greater_limit_counts_and_is_named() -> None:
    moving, counting = Stage(2e12, 1e14), Stage(1e12, 3e14)
    assert (moving.limit(MACHINE), moving.binding(MACHINE)) == (2.0, "bandwidth")
    assert (counting.limit(MACHINE), counting.binding(MACHINE)) == (3.0, "operations")
    assert counting.share(MACHINE, 6.0) == 0.5


def test_shares_of_batches_in_between() -> None:
    assert [MACHINE.decode_share(batch) for batch in (1, 2, 3, 4, 16)] == [0.5, 0.5, 0.5, 0.25, 0.25]


def test_chunks_make_a_whole() -> None:
    """Attention and products of a prompt do not depend on its chunks; bytes do, and the head runs once."""
    whole = prefill_chunks(DECODER, 1000, chunk=1000)
    parts = prefill_chunks(DECODER, 1000, chunk=300)
    assert [len(whole), len(parts)] == [1, 4]
    assert math.fsum(part.operations for part in parts) == pytest.approx(whole[0].operations)
    assert sum(part.bytes for part in parts) > whole[0].bytes
    behind = prefill_chunks(DECODER, 500, context=500)
    first = prefill_chunks(DECODER, 500)
    both = sum(stage.operations for stage in (*first, *behind)) - 2 * DECODER.vocab_size * DECODER.dim
    assert both == pytest.approx(whole[0].operations)
    assert prefill_chunks(DECODER, 0) == []


def test_a_batch_shares_weights_but_no_context() -> None:
    one, four = (decode_step(DECODER, batch=batch, context=1000) for batch in (1, 4))
    empty = decode_step(DECODER)
    assert one.operations * 4 == pytest.approx(four.operations)
    assert four.bytes - empty.bytes > 3.9 * (one.bytes - empty.bytes)
    assert four.bytes < 1.1 * one.bytes


def test_an_answer_is_its_stages() -> None:
    found = predict(PIXTRAL_12B, MACHINE, prompt=9000, context=20_000, pictures=2, batch=4)
    assert found.encode is not None
    assert found.first_token.seconds == pytest.approx(found.prefill.seconds + 2 * found.encode.seconds)
    assert found.tokens_per_second == pytest.approx(4 / found.decode.seconds)
    assert found.limit_tokens_per_second == pytest.approx(4 / found.decode.limit)
    assert found.decode.seconds == pytest.approx(found.decode.limit / 0.25)
    slow = predict(PIXTRAL_12B, replace(MACHINE, attention=0.1), prompt=9000, context=20_000, batch=4)
    assert slow.encode is None and slow.decode.seconds > found.decode.seconds
    assert slow.decode.limit == found.decode.limit


def test_cards() -> None:
    for card in CARDS:
        machine, memory = find_card(card)
        assert machine.name == card and not machine.measured
        assert (
            100e9 < machine.bandwidth < 1e13 and 1e13 < machine.operations < 2e15 and memory % (4 << 30) == 0
        )
    assert find_card("NVIDIA GeForce RTX 4090")[1] == 24 << 30
    assert find_card("4090") == find_card("nvidia geforce rtx-4090")
    assert find_card("H200")[0].operations == find_card("h100")[0].operations
    # a card of 24 GB reads its 4-bit weights and head 160 times a second at most (README)
    limit = predict(PIXTRAL_12B, find_card("RTX 4090")[0], prompt=1, context=0).limit_tokens_per_second
    assert limit == pytest.approx(160, abs=2)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "",
            "'' is no card that is known; give --bandwidth and --tflops, or one of RTX 3060 12GB, RTX",
        ),
        ("GTX 1080", "'GTX 1080' is no card that is known; "),
        ("4", "'4' is no card that is known; "),
        ("A100", "'A100' is more than one card; .*, or one of A100 40GB, A100 80GB$"),
        ("RTX 40", "'RTX 40' is more than one card; .* RTX 4080, RTX 4090$"),
    ],
)
def test_unknown_cards(name: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        find_card(name)


def test_a_machine_of_given_limits() -> None:
    assert card_machine("mine", 5e11, 1e14).decode_share(16) == 0.6
