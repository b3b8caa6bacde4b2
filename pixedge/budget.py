"""From what is asked and what there is to a plan to load by, or to the sentence that it will not do."""

from dataclasses import replace

from pixedge.byte_size import write_bytes
from pixedge.config import ModelConfig
from pixedge.errors import CapacityError
from pixedge.plan import Plan, Setup, Workload, largest_cache, make_plan

_KEPT = (1.0, 0.25, 0.0)
"""Shares of the bytes for kept pictures that are tried, before a smaller cache or none is."""


def plan_load(
    config: ModelConfig,
    setup: Setup,
    *,
    limit: int | None,
    tokens: int | None = None,
    batch: int = 1,
    picture: int | None = None,
) -> Plan:
    """Plan what to load: as large a cache as is asked for, or as fits.

    limit: bytes of the device, None where nobody knows. tokens: places in the cache of all answers together;
    None is the model's context, or as much of it as fits. batch: answers under way at a time. picture: the
    longest side in pixels that is allowed, None is the encoder's. Raises CapacityError with the numbers where
    the limit cannot hold it.
    """
    side = min(picture or config.vision.image_size, config.vision.image_size)
    workload = Workload(
        context=min(tokens or config.decoder.context, config.decoder.context),
        batch=batch,
        picture=(side, side),
        cache=tokens or config.decoder.context,
    )
    setups = [replace(setup, picture_bytes=int(share * setup.picture_bytes)) for share in _KEPT]
    for each in setups:
        plan = make_plan(config, each, workload, limit)
        if plan.fits:
            return plan
    fewest = setups[-1]
    most = largest_cache(config, fewest, workload, limit)
    if tokens is None and most:
        # Pictures are kept before the last tokens of a context that is too large anyway.
        roomy = [largest_cache(config, each, workload, limit) for each in setups]
        at = next(index for index, found in enumerate(roomy) if found >= most // 2)
        return make_plan(config, setups[at], replace(workload, cache=roomy[at]), limit)
    raise CapacityError(_refusal(make_plan(config, fewest, workload, limit), most))


def _refusal(plan: Plan, most: int) -> str:
    """Say what does not fit, and what would; most: places of the cache that fit."""
    device = plan.device
    weights = device.linears + device.head + device.norms + device.embeddings + device.encoder_weights
    parts = (
        f"weights {write_bytes(weights)}",
        f"{plan.workload.cache_tokens:,} tokens of cache {write_bytes(device.kv_cache)}",
        f"all else {write_bytes(plan.total - weights - device.kv_cache)}",
    )
    remedies = [f"give a --context of at most {most:,}"] if most else []
    if plan.setup.kv_bits == 16:
        remedies.append("give --kv-cache 8bit")
    if not most:
        remedies.append("free some memory, or give a greater --vram-limit or a smaller --max-image-size")
    return (
        f"the model takes {write_bytes(plan.total)} ({', '.join(parts)}) and may take "
        f"{write_bytes(plan.limit or 0)}; {', or '.join(remedies)}"
    )
