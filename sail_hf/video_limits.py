"""What a video may ask for before it is refused: limits against files and addresses that nobody vouches for."""

import os
from dataclasses import dataclass, fields


class VideoError(ValueError):
    """A video that cannot be read, or does not cover what was asked; the message names it and says what was found."""


@dataclass(frozen=True)
class VideoLimits:
    """Limits of [`open_video`]; what exceeds one is a [`VideoError`] that names it.

    Each can also be set by an environment variable, `SAIL_MAX_` and its name in capitals: `SAIL_MAX_PIXELS=200000000`.

    Args:
        pixels: of one frame, as its header states it or as it is decoded. Default: 8192 x 8192.
        side_ratio: of the longer side of a frame to the shorter one. Default: 100.
        duration: seconds. Default: a day.
        frames: of one video. Default: 4 million, a day at 46 per second.
        work_seconds: spent on opening a video, or on decoding one frame. Default: 600.
        held_bytes: of the preprocessed frames of one video, all of which a model sees at once. Default: 4 GiB.
        download_bytes: of a URL, or of a stream that cannot seek, which are copied to a temporary file. Default: 8 GiB.
        download_seconds: that such a copy takes, from the first connection to the last byte. Default: 3600.
        allow_private_addresses: whether a URL may lead into this machine or its network: right for a person who typed
            it, wrong for a server that opens the URLs of strangers. Where it is False (`SAIL_ALLOW_PRIVATE_ADDRESSES=0`),
            the addresses of every redirect are checked, and no proxy is used. Default: True.
    """

    pixels: int = 8192 * 8192
    side_ratio: float = 100.0
    duration: float = 24 * 3600.0
    frames: int = 4_000_000
    work_seconds: float = 600.0
    held_bytes: int = 4 * 2**30
    download_bytes: int = 8 * 2**30
    download_seconds: float = 3600.0
    allow_private_addresses: bool = True

    @classmethod
    def from_environment(cls) -> "VideoLimits":
        """The defaults, but for those that environment variables set.

        Raises:
            ValueError: a variable is no number.
        """
        values = {}
        for field in fields(cls):
            if text := os.environ.get(variable := _variable(field.name)):
                try:
                    values[field.name] = bool(int(text)) if field.type is bool else field.type(text)
                except ValueError:
                    kind = "0 or 1" if field.type is bool else "a number"
                    raise ValueError(
                        f"Expected {kind} in the environment variable {variable}, found {text!r}."
                    ) from None
        return cls(**values)

    def check(self, limit: str, found: float, video: str) -> None:
        """Raise a [`VideoError`] if `found`, of the video of that name, exceeds the limit."""
        most = getattr(self, limit)
        if not found <= most:
            raise VideoError(
                f"{video}: {limit.replace('_', ' ')} {_number(found)} is above the limit of {_number(most)}. For a video "
                f"that is to be trusted, raise it: open_video(..., limits=VideoLimits({limit}=...)), or {_variable(limit)} "
                "in the environment"
            )

    def check_size(self, width: int, height: int, video: str) -> None:
        """The same for the size of a frame."""
        self.check("pixels", width * height, f"{video} ({width} x {height})")
        self.check("side_ratio", max(width, height) / max(1, min(width, height)), f"{video} ({width} x {height})")


def _variable(limit: str) -> str:
    return "SAIL_ALLOW_PRIVATE_ADDRESSES" if limit == "allow_private_addresses" else f"SAIL_MAX_{limit.upper()}"


def _number(value: float) -> str:
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"
