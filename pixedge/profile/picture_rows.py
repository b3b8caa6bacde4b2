"""Rows of pictures: read a file, resize, encode, and the first token of a question about one."""

import io
import time
from collections.abc import Callable, Iterator

from PIL import Image

from pixedge.image import ImageLimits, read_image, to_pixels
from pixedge.profile.bench import Bench, Job
from pixedge.profile.drawn_picture import drawn_jpeg
from pixedge.profile.questions import Asked, Asking, ask
from pixedge.profile.rows import Row
from pixedge.profile.spans import Recorder


def files(bench: Bench) -> tuple[bytes, ...]:
    """Return the pictures' files that are asked about: those given, or drawn ones of the settings' sides."""
    sides = bench.settings.sides_of(bench.config)
    return bench.settings.pictures or tuple(drawn_jpeg(side, side, side) for side in sides)


def picture_jobs(bench: Bench) -> Iterator[Job]:
    """Yield the rows of reading, resizing and encoding, one for each size that there is."""
    sources = bench.settings.pictures
    if not sources:  # photographs are larger than what the encoder takes
        side = 2 * bench.config.vision.image_size
        sources = (drawn_jpeg(side, side),)
    for size, data in {read_file(data).size: data for data in sources}.items():
        yield _read_job(bench, data, size)
        yield _resize_job(bench, read_file(data))
    images = [read_file(data) for data in files(bench)]
    for size, image in {bench.size(image): image for image in images}.items():
        yield _encode_job(bench, image, size)


def question_jobs(bench: Bench) -> Iterator[Job]:
    """Yield the rows of first tokens: for each picture that was drawn, or for all that were given at once."""
    if bench.settings.pictures:
        yield _question_job(bench, bench.settings.pictures)
    else:
        for data in files(bench):
            yield _question_job(bench, (data,))


def _read_job(bench: Bench, data: bytes, size: tuple[int, int]) -> Job:
    name = f"read {_name(size)}"

    def measure() -> Row:
        samples = bench.repeat(lambda _: _timed(lambda: read_file(data)))
        return Row(name, "read", samples, 1, "pictures", size=size)

    return Job(name, "pictures", measure)


def _resize_job(bench: Bench, image: Image.Image) -> Job:
    name = f"resize {_name(image.size)}"
    vision, largest = bench.config.vision, bench.settings.max_image_size

    def measure() -> Row:
        samples = bench.repeat(lambda _: _timed(lambda: to_pixels(image, vision, largest)))
        return Row(name, "resize", samples, 1, "pictures", size=image.size)

    return Job(name, "pictures", measure)


def _encode_job(bench: Bench, image: Image.Image, size: tuple[int, int]) -> Job:
    name = f"img{_name(size)}"

    def measure() -> Row:
        pixels = to_pixels(image, bench.config.vision, bench.settings.max_image_size)
        samples = bench.repeat(lambda _: bench.trials.encode(pixels))
        return Row(name, "encode", samples, 1, "pictures", (bench.encode_work(size),), 1, size=size)

    return Job(name, "encode", measure)


def _question_job(bench: Bench, pictures: tuple[bytes, ...]) -> Job:
    sizes = [bench.size(read_file(data)) for data in pictures]
    name = f"ttft {len(pictures)} pictures" if len(pictures) > 1 else f"ttft img{_name(sizes[0])}"
    asking = Asking(pictures, 1, bench.settings.max_image_size)

    def measure() -> Row:
        asked: list[Asked] = []

        def run(_: int) -> float:
            asked.extend(ask(bench.trials, asking, Recorder()))
            return asked[-1].first_token

        samples = bench.repeat(run, lambda: None)  # its parts are warm by now
        tokens = len(asked[-1].request.prompt.ids)
        encoded = [bench.encode_work(size) for size in sizes]
        return Row(
            name,
            "first_token",
            samples,
            work=(*encoded, *bench.prefill_work(tokens)),
            encodings=len(encoded),
            layered=True,
            rest=samples.median - asked[-1].request.watch.prefill + bench.rest(1),
            tokens=tokens,
            size=sizes[0],
        )

    return Job(name, "first token", measure)


def read_file(data: bytes) -> Image.Image:
    """Decode the bytes of a picture's file."""
    return read_image(io.BytesIO(data), "the picture", ImageLimits())


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _name(size: tuple[int, int]) -> str:
    """Give the side of a square picture, or width x height."""
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"
