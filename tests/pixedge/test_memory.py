"""How large the cache may be: from the config and from what is free, never more than there is."""

from pathlib import Path

import pytest
import torch

import pixedge.memory
from pixedge.errors import CapacityError
from pixedge.kv_cache import PagePool
from pixedge.memory import free_memory, plan_cache
from pixedge.stored_weights import token_bytes
from pixedge_export.synthetic import PIXTRAL_12B
from tests.random_models import CPU, random_config

GB = 10**9
DECODER = PIXTRAL_12B.decoder


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_token_takes_what_the_pool_allocates(dtype: torch.dtype, bits: int) -> None:
    config = random_config(3).decoder
    pool = PagePool.allocate(config, 7, dtype, CPU, bits=bits)
    stores = [pool.keys, pool.values, pool.key_scales, pool.value_scales]
    total = sum(store.nbytes for store in stores if store is not None)
    assert total == 7 * 16 * token_bytes(config, bits, dtype.itemsize)


def test_pixtral_s_context_takes_what_the_design_says() -> None:
    assert token_bytes(DECODER, 16) == 160 * 1024
    assert 131_072 * token_bytes(DECODER, 16) == pytest.approx(21.5 * GB, rel=0.01)
    assert 131_072 * token_bytes(DECODER, 8) == pytest.approx(10.9 * GB, rel=0.01)


def plan(monkeypatch: pytest.MonkeyPatch, free: int | None, bits: int, tokens: int | None = None) -> int:
    monkeypatch.setattr(pixedge.memory, "free_memory", lambda device: free)
    return plan_cache(DECODER, torch.bfloat16, bits, CPU, tokens)


@pytest.mark.parametrize("free", [200 * GB, 14 * GB, 8 * GB, 3 * GB, 10**8, None])
@pytest.mark.parametrize("bits", [8, 16])
def test_the_plan_leaves_room_for_everything_else(
    free: int | None, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = plan(monkeypatch, free, bits)
    each = token_bytes(DECODER, bits)
    assert tokens % 16 == 0 and 0 < tokens <= 131_072
    if free is None or free == 200 * GB:
        assert tokens == 131_072
    elif tokens < 131_072:
        budget = max(free - (2 << 30), free // 2)
        assert budget - 16 * each < tokens * each <= budget
    if bits == 8 and free == 14 * GB:
        assert tokens == 131_072  # a machine of 24 GB with the weights loaded


def test_what_is_asked_for_is_given_or_refused_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plan(monkeypatch, 3 * GB, 16, 1000) == 1008
    assert plan(monkeypatch, 3 * GB, 16, 18_000) == 18_000
    sentence = (
        "a cache for 20,000 tokens takes 3,276,800,000 bytes and 3,000,000,000 are free; give a smaller "
    )
    with pytest.raises(CapacityError, match=sentence + "--context, or --kv-cache 8bit"):
        plan(monkeypatch, 3 * GB, 16, 20_000)
    with pytest.raises(CapacityError, match=r"give a smaller --context$"):
        plan(monkeypatch, 3 * GB, 8, 40_000)


MEMINFO = "MemTotal:       24000000 kB\nMemFree:         1000000 kB\nMemAvailable:    9000000 kB\n"


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({"proc/meminfo": MEMINFO}, 9_000_000 * 1024),
        ({"proc/meminfo": MEMINFO, "sys/fs/cgroup/memory.max": "max\n"}, 9_000_000 * 1024),
        (
            {
                "proc/meminfo": MEMINFO,
                "sys/fs/cgroup/memory.max": "4000000000\n",
                "sys/fs/cgroup/memory.current": "3500000000\n",
                "sys/fs/cgroup/memory.stat": "anon 1\ninactive_file 1000000000\n",
            },
            1_500_000_000,
        ),
        (
            {
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "4000000000\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "4100000000\n",
            },
            0,
        ),
        ({}, None),
    ],
    ids=["machine", "no limit", "container", "over its limit", "nothing to read"],
)
def test_free_memory_is_the_machine_s_or_the_container_s(
    files: dict[str, str], free: int | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert pixedge.memory._free_linux(tmp_path) == free


def test_this_machine_has_memory() -> None:
    free = free_memory(CPU)
    assert free is None or free > 10**8
