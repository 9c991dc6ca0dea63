"""The sound of a video: copied to a new file, or converted if its format cannot hold it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, NamedTuple

from eomt_deploy.closing import Closing
from eomt_deploy.video.files import VideoFile, open_container
from eomt_deploy.video.frames import import_av

PCM_FORMATS = ("mp4", "ipod")
"""FFmpeg can write uncompressed sound to these formats, but browsers do not play it."""


class Encoder(NamedTuple):
    """An encoder of FFmpeg.

    Attributes:
        name: its name in FFmpeg.
        codec: the name of the codec that users know.
        rates: sample rates per second that it takes; others are converted to the first one.
        channel_bits: bits per second of each channel.
    """

    name: str
    codec: str
    rates: tuple[int, ...]
    channel_bits: int


AAC = Encoder("aac", "AAC", (48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 8_000), 128_000)
OPUS = Encoder("libopus", "Opus", (48_000,), 64_000)
ENCODERS = {"webm": OPUS, "matroska": OPUS}
"""The encoder for each format of FFmpeg; the others take AAC."""


class Sound(Closing):
    """The packets of the first sound track of a video file, moved to the start of a new one.

    Attributes:
        codec: FFmpeg's name of the original codec.
    """

    def __init__(self, video: VideoFile) -> None:
        self._container = open_container(video.source)
        tracks = self._container.streams.audio
        self._track = tracks[0] if tracks else None
        self._origin = video.origin_seconds
        known = bool(tracks) and tracks[0].codec_context is not None
        self.codec = tracks[0].codec_context.name if known else "its unknown codec"
        self._waiting: Any = None
        self._packets: Iterator[Any] = iter(())
        self._start = 0.0

    def connect(self, output: Any, start: float) -> str:
        """Add the track to an output that starts at this time.

        Args:
            output: container of PyAV, open for writing.
            start: time of the original in seconds.

        Returns:
            ``copied`` (also without a sound track); the codec that the sound is converted to; or
            ``left out`` if the sound can neither be copied nor converted.
        """
        if self._track is None:
            return "copied"
        if self._track.codec_context is None:
            return "left out"
        name = output.format.name
        encoder = None if self._fits(name) else ENCODERS.get(name, AAC)
        if encoder is not None and not self._encodes(name, encoder):
            return "left out"
        shift = round((self._origin + start) / self._track.time_base)
        if start:
            self._container.seek(shift, stream=self._track)
        self._start = start
        if encoder is None:
            copy = output.add_stream_from_template(self._track)
            self._packets = self._moved(copy, shift)
            return "copied"
        self._packets = self._encoded(self._add(output, encoder), shift)
        return encoder.codec

    def _fits(self, output_format: str) -> bool:
        """Whether a format can contain this track. Only writing its header shows that."""
        if self.codec.startswith("pcm_") and output_format in PCM_FORMATS:
            return False
        av: Any = import_av()
        try:
            with av.open(io.BytesIO(), "w", format=output_format) as trial:
                trial.add_stream_from_template(self._track)
                trial.start_encoding()
        except (OSError, ValueError):  # the bases of FFmpeg's errors
            return False
        return True

    def _encodes(self, output_format: str, encoder: Encoder) -> bool:
        """Whether FFmpeg has the encoder, and the encoder takes the channels of this track."""
        av: Any = import_av()
        try:
            with av.open(io.BytesIO(), "w", format=output_format) as trial:
                self._add(trial, encoder)
                trial.start_encoding()
        except (OSError, ValueError):
            return False
        return True

    def _add(self, output: Any, encoder: Encoder) -> Any:
        """A new track for the encoder, with the channels of this one."""
        assert self._track is not None
        rate = self._track.rate if self._track.rate in encoder.rates else encoder.rates[0]
        stream = output.add_stream(encoder.name, rate=rate)
        stream.layout = self._track.layout
        stream.bit_rate = encoder.channel_bits * self._track.channels
        return stream

    def _moved(self, stream: Any, shift: int) -> Iterator[Any]:
        for packet in self._container.demux(self._track):
            if packet.pts is None:  # the end
                continue
            if self._start and packet.pts < shift:  # at the start, it is the encoder's delay
                continue
            packet.dts = (packet.pts if packet.dts is None else packet.dts) - shift
            packet.pts -= shift
            packet.stream = stream
            yield packet

    def _encoded(self, stream: Any, shift: int) -> Iterator[Any]:
        for frame in self._frames():
            if frame.pts is None or (self._start and frame.pts < shift):
                continue
            frame.pts -= shift
            yield from stream.encode(frame)
        yield from stream.encode(None)

    def _frames(self) -> Iterator[Any]:
        """The decoded sound, without damaged parts."""
        av: Any = import_av()
        for packet in self._container.demux(self._track):
            try:
                yield from packet.decode()
            except av.error.InvalidDataError:
                continue

    def packets(self, until: float) -> Iterator[Any]:
        """The next packets, as far as they begin before a time of the original in seconds."""
        while True:
            if self._waiting is None:
                self._waiting = next(self._packets, None)
            packet = self._waiting
            if packet is None or self._start + float(packet.pts * packet.time_base) >= until:
                return
            self._waiting = None
            yield packet

    def close(self) -> None:
        self._container.close()
