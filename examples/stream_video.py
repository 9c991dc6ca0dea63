"""Segment a video frame by frame and write a video of the overlays.

    python examples/stream_video.py model.onnx drive.mp4 seen.mp4

`stream` reads and resizes the next frames while the network works on the current one. It keeps no
frames, so the memory does not grow with the length of the video.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from eomt_deploy import EomtDeployError, Segmenter


def main(model: str, source: str, target: str) -> None:
    """Draw the segments of each frame of `source` into `target`."""
    if Path(target).exists():
        sys.exit(f"error: {target} already exists. Choose another name, or delete it.")
    capture = cv2.VideoCapture(source)
    if not capture.isOpened():
        sys.exit(f"error: {source} cannot be opened as a video.")
    size = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    rate = capture.get(cv2.CAP_PROP_FPS)
    writer = cv2.VideoWriter(target, cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
    if not writer.isOpened():
        sys.exit(f"error: {target} cannot be written. Use a name that ends with .mp4.")

    waiting: deque[np.ndarray] = deque()  # `stream` takes frames ahead of the results

    def frames() -> Iterator[np.ndarray]:
        while True:
            found, frame = capture.read()  # uint8 BGR [H, W, 3]
            if not found:
                return
            waiting.append(frame)
            yield frame

    count = 0
    with Segmenter(model) as segmenter:
        for result in segmenter.stream(frames(), color_order="bgr"):
            frame = waiting.popleft()
            overlay = result.overlay(frame[:, :, ::-1], labels=False)
            writer.write(np.asarray(overlay)[:, :, ::-1])
            count += 1
    writer.release()
    print(f"wrote {count} frames to {target}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except EomtDeployError as error:
        sys.exit(f"error {error.id}: {error}")
