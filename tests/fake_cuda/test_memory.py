"""Bytes taken on cards of three sizes beside the plan, in Pixtral-12B's shape.

CUDA's context is not taken on the stand-in, so the plan's share for it does not count either. Nothing is
copied (FAKE_NOCOPY): the host would need as much memory as the card.
"""

import json
from pathlib import Path

import pytest

from tests.exported_demo import PICTURES
from tests.fake_cuda.conftest import Script
from tests.fake_cuda.sparse_folder import pixtral_of_holes

LOAD_AND_ASK = """
import json, sys
from pathlib import Path
import pixedge
from pixedge.sampling import SamplingParams
from tests.fake_cuda import card

model = pixedge.load(sys.argv[1], device="auto")
loaded = card.counts()
message = [{"type": "image", "image": Path(sys.argv[2])}, {"type": "text", "text": "word " * 1000}]
model.generate([{"role": "user", "content": message}], SamplingParams(max_tokens=8))
asked, plan = card.counts(), model.plan
print(json.dumps({
    "tokens": model.engine.cache.tokens, "planned": plan.total, "context": plan.device.cuda_context,
    "host_embeddings": bool(plan.setup.host_embeddings),
    "loaded": loaded.peak, "asked": asked.peak, "graphs": asked.graphs, "nodes": asked.captured_nodes,
    "triton": asked.captured_triton, "faults": asked.faults,
}))
"""


@pytest.fixture(scope="module")
def holes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pixtral_of_holes(tmp_path_factory.mktemp("holes") / "pixtral-12b")


@pytest.mark.parametrize("mib", [24_564, 16_376, 12_282])
def test_what_is_taken_was_planned(mib: int, holes: Path, script: Script) -> None:
    found = script(LOAD_AND_ASK, holes, PICTURES / "shapes.png", FAKE_VRAM_MIB=mib, FAKE_NOCOPY=1)
    print(json.dumps({"card": mib, **found}))
    assert found["faults"] == {}
    assert 0.85 * found["planned"] < found["loaded"] <= found["asked"]
    assert found["asked"] <= found["planned"] - found["context"]
    # ten kernels a layer, all of Triton; around them nine of torch's for embeddings and angles, and four more
    assert found["nodes"] == 10 * 40 + 11 - found["host_embeddings"] * 2
    assert found["triton"] == 10 * 40 + 5
