"""Pictures of the demo's small world: shapes, text and bar charts, and what covers each pixel."""

import functools
import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

PATCH = 16

Rgb = tuple[int, int, int]

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "diamond", "cross")
COLOURS: dict[str, Rgb] = {
    "red": (218, 36, 40),
    "green": (36, 158, 62),
    "blue": (40, 78, 222),
    "yellow": (246, 214, 30),
    "orange": (250, 136, 22),
    "purple": (134, 44, 172),
    "black": (22, 22, 24),
    "pink": (250, 146, 196),
}
CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
COLOUR_NAMES: tuple[str, ...] = tuple(COLOURS)

# Five faces that come with Pillow and OpenCV, so that no picture depends on the system's fonts:
# name -> (source, weight).
FONTS: dict[str, tuple[str, int]] = {
    "aileron": ("pillow", 0),
    "courier": ("bitmap", 0),
    "rubik light": ("sans", 300),
    "rubik bold": ("sans", 700),
    "rubik italic": ("italic", 400),
    "rubik bold italic": ("italic", 700),
    "wenquanyi": ("uni", 0),
}


@dataclass(frozen=True)
class Thing:
    """A filled shape: centre (x, y) and bounding side, in pixels."""

    shape: str
    colour: str
    rgb: Rgb
    x: float
    y: float
    size: float


@dataclass(frozen=True)
class Row:
    """A line of text: left edge and baseline in pixels, height of its capitals, extra pixels a letter.

    `colour` is empty when the ink is none of COLOURS.
    """

    text: str
    font: str
    height: int
    colour: str
    rgb: Rgb
    left: int
    baseline: int
    spacing: int


@dataclass(frozen=True)
class Bar:
    """A bar of a chart, from its left edge; its height is value x the chart's unit."""

    colour: str
    rgb: Rgb
    value: int
    left: int
    width: int


@dataclass(frozen=True)
class Scene:
    """What one picture shows: things, rows of text, or bars (the other two are empty)."""

    width: int
    height: int
    ground: Rgb
    things: tuple[Thing, ...] = ()
    rows: tuple[Row, ...] = ()
    bars: tuple[Bar, ...] = ()
    frame: Rgb | None = None  # a border around the picture

    @property
    def baseline(self) -> int:
        """The y of the chart's baseline, in pixels."""
        return self.height - 6

    @property
    def unit(self) -> int:
        """Pixels that a bar rises per unit of its value; nine of them fit."""
        return (self.height - 11) // 9


@dataclass(frozen=True)
class Glyph:
    """A rendered character: coverage uint8 [h, w], its offset from the pen, and the pen's advance."""

    alpha: NDArray[np.uint8]
    dx: int
    dy: int
    advance: int


def outline(shape: str) -> NDArray[np.float64]:
    """Return the corners of a shape around (0, 0) with bounding side 1, [corners, 2]; not for the circle."""
    if shape == "square":
        points = [(-0.45, -0.45), (0.45, -0.45), (0.45, 0.45), (-0.45, 0.45)]
    elif shape == "triangle":
        points = [(0.0, -0.48), (0.52, 0.44), (-0.52, 0.44)]
    elif shape == "diamond":
        points = [(0.0, -0.55), (0.4, 0.0), (0.0, 0.55), (-0.4, 0.0)]
    elif shape == "cross":
        w, e = 0.16, 0.5
        points = [(-w, -e), (w, -e), (w, -w), (e, -w), (e, w), (w, w)]
        points += [(w, e), (-w, e), (-w, w), (-e, w), (-e, -w), (-w, -w)]
    elif shape == "star":
        points = []
        for i in range(10):
            radius = 0.56 if i % 2 == 0 else 0.23
            angle = math.pi * i / 5
            points.append((radius * math.sin(angle), 0.04 - radius * math.cos(angle)))
    else:
        raise ValueError(f"no outline for {shape!r}")
    return np.array(points, np.float64)


OUTLINES = {shape: outline(shape) for shape in SHAPES if shape != "circle"}


def _draw_thing(pixels: NDArray[np.uint8], cover: NDArray[np.uint8], thing: Thing, item: int) -> None:
    # Coordinates in 1/16 pixel, so that placement is not tied to whole pixels.
    if thing.shape == "circle":
        centre = (round(thing.x * 16), round(thing.y * 16))
        radius = round(thing.size * 8)
        cv2.circle(pixels, centre, radius, thing.rgb, -1, cv2.LINE_AA, 4)
        cv2.circle(cover, centre, radius, (item,), -1, cv2.LINE_8, 4)
        return
    corners = np.rint((OUTLINES[thing.shape] * thing.size + (thing.x, thing.y)) * 16).astype(np.int32)
    cv2.fillPoly(pixels, [corners], thing.rgb, cv2.LINE_AA, 4)
    cv2.fillPoly(cover, [corners], (item,), cv2.LINE_8, 4)


def _render(font: str, size: int, character: str) -> tuple[NDArray[np.uint8], int, int, int]:
    """Coverage on a wide canvas, the pen's x and baseline on it, and the advance."""
    source, weight = FONTS[font]
    pen, baseline = size, 2 * size
    if source == "bitmap":
        # A fixed 6 x 11 face; `size` is its enlargement.
        small = Image.new("L", (18, 24), 0)
        face = ImageFont.load_default_imagefont()
        ImageDraw.Draw(small).text((6, 6), character, fill=255, font=face)
        large = small.resize((18 * size, 24 * size), Image.Resampling.BICUBIC)
        return np.asarray(large), 6 * size, 14 * size, 6 * size
    if source == "pillow":
        truetype = _truetype(size)
        canvas = Image.new("L", (4 * size, 4 * size), 0)
        ImageDraw.Draw(canvas).text((pen, baseline), character, fill=255, font=truetype, anchor="ls")
        return np.asarray(canvas), pen, baseline, round(truetype.getlength(character))
    white = np.zeros((4 * size, 4 * size, 3), np.uint8)
    end, _ = cv2.putText(white, character, (pen, baseline), (255, 255, 255), _face(source), size, weight)
    return white[:, :, 0], pen, baseline, end[0] - pen


@functools.cache
def _truetype(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font


@functools.cache
def _face(source: str) -> cv2.FontFace:
    return cv2.FontFace(source)


@functools.cache
def _font_size(font: str, height: int) -> int:
    """Return the font size whose capitals are about `height` pixels high."""
    if font == "courier":
        return max(2, round(height / 7))
    alpha = _render(font, 100, "H")[0]
    rows = np.flatnonzero((alpha > 127).any(axis=1))
    return round(height * 100 / int(rows[-1] - rows[0] + 1))


@functools.cache
def glyph(font: str, height: int, character: str) -> Glyph:
    """Return the cached rendering of a character whose font's capitals are `height` pixels high."""
    alpha, pen, baseline, advance = _render(font, _font_size(font, height), character)
    rows = np.flatnonzero(alpha.any(axis=1))
    columns = np.flatnonzero(alpha.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    ink = alpha[top : rows[-1] + 1, left : columns[-1] + 1].copy()
    return Glyph(ink, left - pen, top - baseline, advance)


def text_width(text: str, font: str, height: int, spacing: int) -> int:
    """Return the width of a line of text, in pixels."""
    return sum(glyph(font, height, c).advance + spacing for c in text)


def _draw_row(pixels: NDArray[np.uint8], cover: NDArray[np.uint8], row: Row, item: int) -> None:
    pen = row.left
    ink = np.array(row.rgb, np.int32)
    for offset, character in enumerate(row.text):
        g = glyph(row.font, row.height, character)
        top, left = row.baseline + g.dy, pen + g.dx
        pen += g.advance + row.spacing
        y0, x0 = max(top, 0), max(left, 0)
        y1 = min(top + g.alpha.shape[0], pixels.shape[0])
        x1 = min(left + g.alpha.shape[1], pixels.shape[1])
        if y0 >= y1 or x0 >= x1:
            continue
        alpha = g.alpha[y0 - top : y1 - top, x0 - left : x1 - left]
        under = pixels[y0:y1, x0:x1]
        mix = under + (ink - under) * alpha[:, :, None].astype(np.int32) // 255
        pixels[y0:y1, x0:x1] = mix
        cover[y0:y1, x0:x1][alpha > 100] = item + offset


def _draw_chart(pixels: NDArray[np.uint8], cover: NDArray[np.uint8], scene: Scene) -> None:
    for value in range(1, 10):
        y = scene.baseline - value * scene.unit
        thick = value == 5
        shade = 120 if thick else 190
        pixels[y - 1 if thick else y : y + 1] = shade
    for item, bar in enumerate(scene.bars, 1):
        area = np.s_[
            scene.baseline - bar.value * scene.unit : scene.baseline, bar.left : bar.left + bar.width
        ]
        pixels[area] = bar.rgb
        cover[area] = item
    pixels[scene.baseline : scene.baseline + 2] = 40


def draw(scene: Scene) -> tuple[Image.Image, NDArray[np.uint8]]:
    """Draw a scene: an RGB picture of the scene's size, and which item covers each pixel.

    Items are numbered from 1: things, then the characters of all rows, then bars; 0 is the ground. [H, W].
    """
    pixels: NDArray[np.uint8] = np.empty((scene.height, scene.width, 3), np.uint8)  # [H, W, RGB]
    pixels[:] = scene.ground
    cover: NDArray[np.uint8] = np.zeros((scene.height, scene.width), np.uint8)
    if scene.frame is not None:
        cv2.rectangle(pixels, (1, 1), (scene.width - 2, scene.height - 2), scene.frame, 2)
    item = 1
    for thing in scene.things:
        _draw_thing(pixels, cover, thing, item)
        item += 1
    for row in scene.rows:
        _draw_row(pixels, cover, row, item)
        item += len(row.text)
    if scene.bars:
        _draw_chart(pixels, cover, scene)
    return Image.fromarray(pixels), cover
