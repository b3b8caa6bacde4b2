"""Option values that click has no type for; each check is a click callback."""

import re

import click

from pixedge.byte_size import parse_bytes
from pixedge.errors import UsageError


def device(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Accept auto, cpu, cuda and cuda:N, where N counts the GPUs from 0."""
    if re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", value.lower()) is None:
        raise click.BadParameter(f"'{value}' is not a device; give auto, cpu, cuda or cuda:N", ctx, param)
    return value.lower()


def count(ctx: click.Context, param: click.Parameter, value: int | None) -> int | None:
    """Accept 1 and more; click's IntRange would write its bounds into the help."""
    if value is not None and value < 1:
        raise click.BadParameter(f"{value} is too small; give 1 or more", ctx, param)
    return value


def counts(ctx: click.Context, param: click.Parameter, values: tuple[int, ...]) -> tuple[int, ...]:
    """Accept 1 and more, any number of times."""
    for value in values:
        count(ctx, param, value)
    return values


def natural(ctx: click.Context, param: click.Parameter, value: int) -> int:
    """Accept 0 and more."""
    if value < 0:
        raise click.BadParameter(f"{value} is too small; give 0 or more", ctx, param)
    return value


def naturals(ctx: click.Context, param: click.Parameter, values: tuple[int, ...]) -> tuple[int, ...]:
    """Accept 0 and more, any number of times."""
    for value in values:
        natural(ctx, param, value)
    return values


def memory(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Turn an amount of memory such as 24GiB into bytes."""
    try:
        return None if value is None else parse_bytes(value, max(param.opts, key=len))
    except UsageError as error:
        raise click.BadParameter(str(error), ctx, param) from None
