"""What the playground looks like: actors, props and scenes as drawn shapes. Nothing here is real footage.

An actor or prop is drawn once, large, and pasted small wherever a frame needs it, so that a frame costs some 0.1 ms.
"""

import math
from collections.abc import Callable
from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageDraw

SIZE = 96  # pixels, square

_INK = (45, 42, 50)
_DRAWN = 200  # sprites are drawn on a canvas of this side and then made smaller, which smooths their edges
_DRAWN_UNIT = _DRAWN / 100  # coordinates of the drawings are percent of the canvas

# Sprites: actors and props


class _Pen:
    """Draws outlined shapes in percent of the sprite's canvas."""

    def __init__(self):
        self.image = Image.new("RGBA", (_DRAWN, _DRAWN), (0, 0, 0, 0))
        self._draw = ImageDraw.Draw(self.image)

    def oval(self, box, fill, ink=2.5):
        self._draw.ellipse(_scaled(box), fill, _INK if ink else None, round(ink * _DRAWN_UNIT))

    def box(self, box, fill, ink=2.5, radius=4.0):
        self._draw.rounded_rectangle(
            _scaled(box), radius * _DRAWN_UNIT, fill, _INK if ink else None, round(ink * _DRAWN_UNIT)
        )

    def polygon(self, points, fill, ink=2.5):
        points = _scaled(points)
        self._draw.polygon(points, fill)
        if ink:
            self._draw.line([*points, *points[:4]], _INK, round(ink * _DRAWN_UNIT), joint="curve")

    def line(self, points, color=_INK, width=2.5):
        self._draw.line(_scaled(points), color, round(width * _DRAWN_UNIT), joint="curve")

    def arc(self, box, start, end, color=_INK, width=2.5):
        self._draw.arc(_scaled(box), start, end, color, round(width * _DRAWN_UNIT))

    def eyes(self, y, *xs, radius=4.5):
        for x in xs:
            self.oval((x - radius, y - radius, x + radius, y + radius), (255, 255, 255), ink=1.5)
            self.oval((x - radius / 2, y - radius / 2, x + radius / 2, y + radius / 2), _INK, ink=0)


def _scaled(values) -> list[float]:
    return [value * _DRAWN_UNIT for value in values]


def _robot(pen):
    red, dark = (222, 42, 42), (150, 25, 30)
    pen.line((50, 4, 50, 18), width=3)
    pen.oval((45, 0, 55, 10), (255, 210, 60))
    pen.box((33, 14, 67, 40), red)
    pen.eyes(26, 42, 58, radius=5.5)
    pen.line((42, 35, 58, 35))
    for left, right in ((18, 30), (70, 82)):
        pen.box((left, 44, right, 74), dark)
    pen.box((34, 76, 47, 98), dark)
    pen.box((53, 76, 66, 98), dark)
    pen.box((28, 40, 72, 80), red)
    pen.box((38, 50, 62, 64), (250, 225, 150))


def _frog(pen):
    green, light = (50, 170, 55), (190, 235, 140)
    for left, right in ((8, 38), (62, 92)):
        pen.oval((left, 74, right, 98), green)
    pen.oval((16, 34, 84, 96), green)
    pen.oval((30, 58, 70, 94), light, ink=0)
    for left in (20, 56):
        pen.oval((left, 16, left + 24, 42), green)
    pen.eyes(29, 32, 68, radius=7)
    pen.arc((30, 36, 70, 60), 10, 170, width=3)


def _ghost(pen):
    blue = (70, 130, 235)
    for left in (18, 39.5, 61):
        pen.oval((left, 76, left + 21, 98), blue)
    pen.oval((18, 6, 82, 74), blue)
    pen.box((18, 40, 82, 88), blue, ink=0, radius=0)
    pen.line((19.2, 40, 19.2, 88))
    pen.line((80.8, 40, 80.8, 88))
    pen.eyes(38, 38, 62, radius=8)
    pen.oval((44, 54, 56, 68), _INK, ink=0)


def _duck(pen):
    yellow, orange = (255, 215, 25), (245, 130, 20)
    for x in (42, 58):
        pen.line((x, 88, x, 97), orange, width=4)
        pen.line((x, 97, x + 10, 97), orange, width=4)
    pen.polygon((12, 42, 34, 56, 22, 74), yellow)
    pen.oval((16, 44, 80, 92), yellow)
    pen.oval((48, 8, 84, 52), yellow)
    pen.polygon((80, 26, 99, 34, 80, 42), orange)
    pen.eyes(25, 70)
    pen.oval((28, 56, 60, 80), (240, 180, 10))


def _fox(pen):
    orange, cream = (240, 120, 20), (255, 240, 220)
    pen.oval((64, 52, 99, 72), orange)
    pen.oval((86, 54, 99, 70), cream)
    pen.oval((28, 48, 74, 98), orange)
    pen.oval((40, 60, 62, 96), cream, ink=0)
    pen.polygon((22, 4, 42, 20, 24, 34), orange)
    pen.polygon((78, 4, 58, 20, 76, 34), orange)
    pen.polygon((20, 24, 50, 14, 80, 24, 68, 46, 50, 60, 32, 46), orange)
    pen.polygon((38, 44, 62, 44, 50, 60), cream, ink=0)
    pen.eyes(34, 39, 61)
    pen.oval((45, 52, 55, 61), _INK, ink=0)


def _octopus(pen):
    purple, light = (150, 60, 190), (200, 130, 230)
    for left, right in ((4, 34), (24, 46), (54, 76), (66, 96)):
        pen.arc((left, 52, right, 96), 0 if left < 40 else 90, 90 if left < 40 else 180, _INK, width=13)
        pen.arc(
            (left + 2.5, 54.5, right - 2.5, 93.5), 0 if left < 40 else 90, 90 if left < 40 else 180, purple, width=8
        )
    for x in (28, 42, 58, 72):
        pen.box((x - 7, 58, x + 7, 97), purple, radius=6)
    pen.oval((16, 4, 84, 72), purple)
    pen.oval((26, 12, 46, 26), light, ink=0)
    pen.eyes(42, 38, 62, radius=8)
    pen.arc((40, 48, 60, 62), 10, 170)


def _pig(pen):
    pink, dark = (250, 160, 185), (225, 105, 145)
    for left in (24, 38, 56, 70):
        pen.box((left, 78, left + 10, 98), dark)
    pen.arc((2, 50, 18, 66), 60, 330, dark, width=3.5)
    pen.oval((12, 42, 86, 90), pink)
    pen.polygon((46, 14, 62, 24, 48, 36), dark)
    pen.polygon((92, 14, 78, 24, 90, 36), dark)
    pen.oval((46, 16, 94, 66), pink)
    pen.eyes(34, 60, 80)
    pen.oval((58, 42, 82, 60), dark)
    for x in (64, 72):
        pen.oval((x, 47, x + 4, 55), _INK, ink=0)


def _rabbit(pen):
    white, pink = (250, 250, 252), (250, 170, 190)
    for left in (30, 54):
        pen.oval((left, 0, left + 16, 40), white)
        pen.oval((left + 5, 6, left + 11, 34), pink, ink=0)
    pen.oval((26, 54, 74, 98), white)
    pen.oval((24, 26, 76, 66), white)
    pen.eyes(42, 40, 60)
    pen.oval((45, 49, 55, 57), pink)
    for left in (18, 58):
        pen.oval((left, 86, left + 24, 99), white)


def _trampoline(pen):
    for x in (16, 84):
        pen.line((x, 55, x, 78), (90, 90, 100), width=6)
    pen.oval((2, 34, 98, 66), (60, 60, 140), ink=4)
    pen.oval((12, 40, 88, 60), (25, 25, 40), ink=0)


def _bed(pen):
    wood = (140, 85, 45)
    pen.box((4, 22, 12, 82), wood)
    pen.box((88, 38, 96, 82), wood)
    pen.box((8, 48, 92, 70), (60, 110, 200))
    pen.box((14, 36, 36, 50), (250, 250, 250))


def _easel(pen):
    wood = (150, 95, 50)
    pen.line((30, 98, 48, 8), wood, width=6)
    pen.line((70, 98, 52, 8), wood, width=6)
    pen.box((16, 14, 84, 68), (252, 250, 240), ink=3.5)
    pen.polygon((22, 62, 42, 36, 58, 62), (70, 160, 80), ink=0)
    pen.oval((56, 22, 76, 42), (250, 170, 30), ink=0)
    pen.box((48, 52, 76, 62), (60, 130, 220), ink=0, radius=1)
    pen.box((18, 68, 82, 74), wood)


def _brush(pen):
    pen.line((20, 80, 68, 32), (150, 95, 50), width=7)
    pen.oval((62, 20, 80, 38), (225, 40, 60))


def _kite(pen):
    pen.polygon((50, 2, 90, 42, 50, 96, 10, 42), (235, 60, 120), ink=4)
    pen.polygon((50, 2, 90, 42, 50, 42), (255, 220, 60), ink=0)
    pen.polygon((10, 42, 50, 42, 50, 96), (60, 190, 230), ink=0)


def _book(pen):
    pen.polygon((50, 30, 96, 18, 96, 78, 50, 90), (150, 60, 40), ink=4)
    pen.polygon((50, 30, 4, 18, 4, 78, 50, 90), (180, 75, 50), ink=4)
    pen.polygon((50, 26, 90, 14, 90, 70, 50, 82), (255, 252, 235), ink=2)
    pen.polygon((50, 26, 10, 14, 10, 70, 50, 82), (255, 252, 235), ink=2)
    for y in (34, 46, 58):
        pen.line((18, y - 4, 42, y + 4), (120, 120, 120), width=3)
        pen.line((82, y - 4, 58, y + 4), (120, 120, 120), width=3)


def _skateboard(pen):
    for x in (26, 74):
        pen.oval((x - 9, 54, x + 9, 72), (250, 240, 80), ink=4)
    pen.line((4, 40, 16, 50, 84, 50, 96, 40), _INK, width=13)
    pen.line((5, 41, 16, 50, 84, 50, 95, 41), (30, 200, 190), width=8)


def _note(pen):
    pen.oval((14, 66, 44, 90), _INK, ink=0)
    pen.line((41, 78, 41, 14), _INK, width=7)
    pen.line((41, 16, 70, 30, 66, 48), _INK, width=9)


def _disco_ball(pen):
    pen.line((50, 0, 50, 22), width=4)
    pen.oval((12, 18, 88, 94), (205, 205, 225), ink=4)
    for y in (38, 56, 74):
        pen.line((16, y, 84, y), (150, 150, 185), width=3)
    for x in (34, 50, 66):
        pen.line((x, 22, x, 90), (150, 150, 185), width=3)
    pen.oval((28, 30, 44, 46), (255, 255, 255), ink=0)


def _letter_z(pen):
    pen.line((22, 22, 78, 22, 22, 80, 78, 80), (250, 250, 255), width=24)
    pen.line((22, 22, 78, 22, 22, 80, 78, 80), (40, 60, 130), width=13)


def _ball(color: tuple[int, int, int]) -> Callable[[_Pen], None]:
    return lambda pen: pen.oval((6, 6, 94, 94), color, ink=9)


def _bird(up: bool) -> Callable[[_Pen], None]:
    y = 20 if up else 74
    return lambda pen: pen.line((6, y, 30, 40, 50, 54, 70, 40, 94, y), (30, 30, 35), width=11)


def _passer_by(step: bool) -> Callable[[_Pen], None]:
    gray, spread = (120, 122, 128), 14 if step else 3

    def draw(pen):
        for foot in (50 - spread, 50 + spread):
            pen.line((50, 58, foot, 97), gray, width=8)
        pen.line((50, 36, 50 - spread, 58), gray, width=6)
        pen.box((42, 28, 58, 62), gray, ink=0, radius=7)
        pen.oval((40, 6, 60, 26), gray, ink=0)

    return draw


def _leaf(pen):
    pen.polygon((6, 50, 36, 20, 94, 50, 36, 80), (170, 105, 40), ink=6)


def _balloon(pen):
    pen.line((50, 62, 46, 80, 54, 98), (90, 90, 90), width=2.5)
    pen.oval((26, 4, 74, 64), (235, 225, 200), ink=3)


_SPRITES: dict[str, Callable[[_Pen], None]] = {
    "robot": _robot,
    "frog": _frog,
    "ghost": _ghost,
    "duck": _duck,
    "fox": _fox,
    "octopus": _octopus,
    "pig": _pig,
    "rabbit": _rabbit,
    "trampoline": _trampoline,
    "bed": _bed,
    "easel": _easel,
    "brush": _brush,
    "kite": _kite,
    "book": _book,
    "skateboard": _skateboard,
    "note": _note,
    "disco ball": _disco_ball,
    "z": _letter_z,
    "ball 0": _ball((235, 50, 50)),
    "ball 1": _ball((60, 90, 235)),
    "ball 2": _ball((250, 220, 40)),
    "bird 0": _bird(up=True),
    "bird 1": _bird(up=False),
    "passer-by 0": _passer_by(step=True),
    "passer-by 1": _passer_by(step=False),
    "leaf": _leaf,
    "balloon": _balloon,
}


@cache
def _drawing(name: str) -> Image.Image:
    pen = _Pen()
    _SPRITES[name](pen)
    return pen.image


@lru_cache(maxsize=4096)
def _sprite(name: str, side: int, angle: int, mirrored: bool) -> Image.Image:
    image = _drawing(name)
    if mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if angle:
        image = image.rotate(angle, Image.Resampling.BICUBIC, expand=True)
        side = round(side * image.width / _DRAWN)
    # Averaging colors multiplied by their opacity keeps the edges clean.
    return image.convert("RGBa").resize((side, side), Image.Resampling.BOX).convert("RGBA")


# Frames


class Stage:
    """A frame being drawn. Positions and sizes are shares of the stage's side, angles degrees counterclockwise.

    Args:
        background: what it stands on; stays as it is.
        mirrored: whether left and right of all that is put there are exchanged (not of the background).
        zoom, left, top: side of the stage and its left upper corner, as shares of the picture's side.
    """

    def __init__(
        self, background: Image.Image, mirrored: bool, zoom: float = 1.0, left: float = 0.0, top: float = 0.0
    ):
        self.image = background.copy()
        self.mirrored = mirrored
        self.zoom, self.left, self.top = zoom, left, top
        self._placed: list[tuple[str, Image.Image, int, int]] = []

    def put(self, name: str, x: float, y: float, side: float, angle: float = 0.0) -> None:
        """Paste a sprite with its middle at (x, y); a mirrored stage turns it all about."""
        if self.mirrored:
            x, angle = 1 - x, -angle
        # Few sizes and angles, so that nearly all sprites come from the cache.
        pixels, angle = max(3, round(self.zoom * side * SIZE)), 5 * round(angle / 5) % 360
        sprite = _sprite(name, pixels, angle, self.mirrored)
        x, y = self.left + self.zoom * x, self.top + self.zoom * y
        corner = (round(x * SIZE - sprite.width / 2), round(y * SIZE - sprite.width / 2))
        self.image.paste(sprite, corner, sprite)
        self._placed.append((name, sprite, *corner))

    def string(self, *points: float) -> None:
        flipped = [1 - p if self.mirrored and i % 2 == 0 else p for i, p in enumerate(points)]
        moved = [(self.left, self.top)[i % 2] + self.zoom * p for i, p in enumerate(flipped)]
        ImageDraw.Draw(self.image).line([p * SIZE for p in moved], _INK, 1)

    def darken(self, share: float) -> None:
        self.image = Image.blend(self.image, Image.new("RGB", self.image.size, (8, 10, 40)), share)

    def boxes(self) -> list[tuple[str, list[float]]]:
        """Name and box `[x0, y0, x1, y1]` of each sprite's ink, as shares of the picture's side, cut off at its edges; in
        the order they were put, those outside of the picture left out. What is covered by later sprites counts as there."""
        found = []
        for name, sprite, x, y in self._placed:
            x0, y0, x1, y1 = sprite.getbbox(alpha_only=True)
            box = [min(max(value / SIZE, 0.0), 1.0) for value in (x + x0, y + y0, x + x1, y + y1)]
            if box[0] < box[2] and box[1] < box[3]:
                found.append((name, box))
        return found


_GROUND = 0.86  # where the feet are


def draw_event(
    background: Image.Image, actor: str, action: str, x: float, height: float, seconds: float, mirrored: bool
) -> Image.Image:
    """An actor in action before a background.

    Args:
        x, height: place and size of the actor, as shares of the picture's side.
        seconds: time since the action began, which moves the actor and the props.
        mirrored: whether left and right of the actor and the props are exchanged (not of the background).
    """
    stage = Stage(background, mirrored)
    act(stage, actor, action, x, height, seconds)
    return stage.image


def act(stage: Stage, actor: str, action: str, x: float, height: float, seconds: float) -> None:
    """Put an actor in action on a stage; as [`draw_event`]."""
    _ACTION_DRAWINGS[action](stage, actor, 1 - x if stage.mirrored else x, height, seconds)


def _jump(stage, actor, x, height, t):
    stage.put("trampoline", x, _GROUND, 0.52)
    stage.put(actor, x, _GROUND - 0.04 - height / 2 - 0.26 * abs(math.sin(3.5 * t)), height, 12 * math.sin(3.5 * t))


def _juggle(stage, actor, x, height, t):
    stage.put(actor, x, _GROUND - height / 2, height)
    for i in range(3):
        turn = (0.7 * t + i / 3) % 1
        angle = math.pi * (1.15 - 1.3 * turn)
        stage.put(f"ball {i}", x + 0.29 * math.cos(angle), _GROUND - height * 0.8 - 0.26 * math.sin(angle), 0.12)


def _sleep(stage, actor, x, height, t):
    stage.put("bed", x, _GROUND - 0.2, 0.66)
    stage.put(actor, x + 0.01, _GROUND - 0.29 - height * 0.12 + 0.008 * math.sin(2 * t), height * 0.95, 90)
    for i in range(2):
        rise = (0.3 * t + i / 2) % 1
        stage.put("z", x - 0.1 - 0.16 * rise, _GROUND - 0.5 - 0.26 * rise, 0.08 + 0.07 * rise)


def _paint(stage, actor, x, height, t):
    stage.put("easel", x + 0.2, _GROUND - 0.22, 0.46)
    stage.put(actor, x - 0.16, _GROUND - height / 2, height)
    stage.put("brush", x + 0.06 + 0.05 * math.sin(3 * t), _GROUND - 0.26 + 0.05 * math.cos(5 * t), 0.17)


def _fly_kite(stage, actor, x, height, t):
    kite_x, kite_y = x + 0.24 + 0.07 * math.sin(1.3 * t), 0.2 + 0.05 * math.sin(2.1 * t)
    stage.string(x - 0.06, _GROUND - height * 0.5, x + 0.08, 0.5, kite_x, kite_y)
    stage.put(actor, x - 0.14, _GROUND - height / 2, height)
    stage.put("kite", kite_x, kite_y, 0.27, -25 + 15 * math.sin(1.3 * t))


def _read(stage, actor, x, height, t):
    stage.put(actor, x, _GROUND - height / 2, height)
    stage.put("book", x, _GROUND - height * 0.22 + 0.012 * math.sin(2.5 * t), 0.3, 5 * math.sin(1.2 * t))


def _skate(stage, actor, x, height, t):
    x += 0.2 * math.sin(1.6 * t)
    stage.put("skateboard", x, _GROUND + 0.02, 0.46)
    stage.put(actor, x, _GROUND - 0.01 - height / 2, height, -14 * math.cos(1.6 * t))


def _dance(stage, actor, x, height, t):
    stage.put("disco ball", x, 0.11, 0.2)
    for i in range(3):
        rise = (0.4 * t + i / 3) % 1
        side = -1 if i == 1 else 1
        stage.put("note", x + side * (0.26 + 0.06 * math.sin(7 * rise)), 0.62 - 0.4 * rise, 0.19)
    stage.put(actor, x + 0.04 * math.sin(4 * t), _GROUND - height / 2, height, 24 * math.sin(4 * t))


_ACTION_DRAWINGS: dict[str, Callable[[Stage, str, float, float, float], None]] = {
    "jump": _jump,
    "juggle": _juggle,
    "sleep": _sleep,
    "paint": _paint,
    "kite": _fly_kite,
    "read": _read,
    "skate": _skate,
    "dance": _dance,
}


def draw_happening(background: Image.Image, kind: str, progress: float, phase: float) -> Image.Image:
    """A minor happening before a background. `progress` in [0, 1] through it, `phase` in [0, 1) varies its looks."""
    stage = Stage(background, mirrored=phase < 0.5)
    vary = 2 * phase % 1
    if kind == "bird":
        y = 0.14 + 0.2 * vary
        stage.put(f"bird {int(12 * progress) % 2}", 0.08 + 0.84 * progress, y + 0.03 * math.sin(9 * progress), 0.17)
    elif kind == "shade":
        stage.darken(0.62 * math.sin(math.pi * (0.15 + 0.7 * progress)))
    elif kind == "passer-by":
        stage.put(f"passer-by {int(12 * progress) % 2}", 0.05 + 0.9 * progress, 0.7, 0.36)
    elif kind == "leaves":
        for i in range(6):
            x = (0.05 + 0.17 * i + 0.9 * progress) % 1
            stage.put("leaf", x, 0.2 + (0.41 * i + vary) % 0.55 + 0.04 * math.sin(9 * x), 0.09, 360 * (x + i / 6))
    else:
        stage.put("balloon", 0.3 + 0.4 * vary + 0.04 * math.sin(5 * progress), 0.7 - 0.55 * progress, 0.27)
    return stage.image


def draw_background(scene: str, looks: int) -> Image.Image:
    """The empty scene. `looks` seeds its details (light, clouds, where things stand)."""
    rng = np.random.default_rng(looks)
    scale = 4
    side = SIZE * scale
    image = Image.new("RGB", (side, side), _SKIES[scene])
    _SCENE_DRAWINGS[scene](ImageDraw.Draw(image), side, rng)
    pixels = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float32)
    light = rng.uniform(0.85, 1.1) * rng.uniform(0.95, 1.05, 3)
    return Image.fromarray((pixels * light).clip(0, 255).astype(np.uint8))


_SKIES = {
    "meadow": (150, 205, 245),
    "beach": (175, 220, 250),
    "desert": (245, 215, 165),
    "snow": (200, 212, 228),
    "street": (185, 200, 215),
    "forest": (160, 200, 190),
}


def _cloud(draw, side, x, y, color):
    for dx, dy, radius in ((-0.07, 0.01, 0.04), (0, -0.01, 0.06), (0.07, 0.01, 0.04)):
        _disc(draw, side, x + dx, y + dy, radius, color)


def _disc(draw, side, x, y, radius, color):
    draw.ellipse([side * v for v in (x - radius, y - radius, x + radius, y + radius)], color)


def _floor(draw, side, top, color):
    draw.rectangle([0, side * top, side, side], color)


def _meadow(draw, side, rng):
    _cloud(draw, side, rng.uniform(0.1, 0.9), rng.uniform(0.08, 0.25), (255, 255, 255))
    _disc(draw, side, rng.uniform(0, 1), 1.05, 0.55, (130, 195, 100))
    _floor(draw, side, 0.66, (120, 190, 85))
    for _ in range(10):
        _disc(
            draw,
            side,
            rng.random(),
            rng.uniform(0.72, 0.98),
            0.012,
            ((250, 245, 250), (250, 120, 140))[rng.integers(2)],
        )


def _beach(draw, side, rng):
    _disc(draw, side, rng.uniform(0.1, 0.9), 0.14, 0.07, (255, 240, 150))
    draw.rectangle([0, side * 0.48, side, side * 0.66], (40, 130, 190))
    for _ in range(5):
        x, y = rng.random() * side, rng.uniform(0.5, 0.62) * side
        draw.line([x, y, x + side * 0.1, y], (190, 225, 240), 4)
    _floor(draw, side, 0.66, (240, 220, 160))


def _desert(draw, side, rng):
    for _ in range(2):
        x = rng.random() * side
        draw.polygon([x - side * 0.5, side * 0.72, x, side * 0.45, x + side * 0.5, side * 0.72], (225, 170, 105))
    _floor(draw, side, 0.66, (232, 185, 115))
    x, green = (0.09, 0.91)[rng.integers(2)] * side, (95, 135, 75)
    draw.line([x, side * 0.42, x, side * 0.74], green, side // 22)
    draw.line([x - side * 0.06, side * 0.5, x - side * 0.06, side * 0.58, x, side * 0.58], green, side // 32)


def _snow(draw, side, rng):
    x = rng.random() * side
    draw.polygon([x - side * 0.5, side * 0.7, x, side * 0.3, x + side * 0.5, side * 0.7], (150, 165, 190))
    draw.polygon([x - side * 0.16, side * 0.43, x, side * 0.3, x + side * 0.16, side * 0.43], (240, 245, 250))
    _floor(draw, side, 0.66, (226, 234, 244))
    for _ in range(14):
        _disc(draw, side, rng.random(), rng.uniform(0.02, 0.6), 0.008, (250, 250, 255))


def _street(draw, side, rng):
    left = 0.0
    while left < 1:
        width, top, shade = rng.uniform(0.16, 0.3), rng.uniform(0.14, 0.4), int(rng.integers(110, 170))
        draw.rectangle([side * v for v in (left, top, left + width, 0.66)], (shade, shade - 15, shade - 25))
        for y in np.arange(top + 0.06, 0.58, 0.11):
            draw.rectangle([side * v for v in (left + 0.04, y, left + 0.08, y + 0.05)], (215, 215, 190))
        left += width
    _floor(draw, side, 0.66, (170, 170, 172))
    _floor(draw, side, 0.74, (105, 105, 112))
    for x in np.arange(rng.uniform(-0.2, 0), 1, 0.28):
        draw.rectangle([side * v for v in (x, 0.92, x + 0.14, 0.94)], (235, 235, 225))


def _forest(draw, side, rng):
    _floor(draw, side, 0.4, (85, 125, 95))
    for x in (np.arange(6) + rng.uniform(-0.3, 0.3, 6)) / 5:
        draw.rectangle([side * v for v in (x - 0.02, 0.4, x + 0.02, 0.7)], (95, 70, 50))
        draw.polygon([side * v for v in (x - 0.14, 0.52, x, 0.06 + 0.1 * rng.random(), x + 0.14, 0.52)], (45, 95, 65))
    _floor(draw, side, 0.66, (115, 110, 75))


_SCENE_DRAWINGS: dict[str, Callable[[ImageDraw.ImageDraw, int, np.random.Generator], None]] = {
    "meadow": _meadow,
    "beach": _beach,
    "desert": _desert,
    "snow": _snow,
    "street": _street,
    "forest": _forest,
}
