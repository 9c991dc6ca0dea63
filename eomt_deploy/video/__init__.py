"""Video files, streams and cameras: read frames, and write overlays or labels as a video."""

from eomt_deploy.video.files import VideoFile
from eomt_deploy.video.frames import Frame, Video
from eomt_deploy.video.live import LiveVideo
from eomt_deploy.video.opening import is_live, is_video, open_video

__all__ = ["Frame", "LiveVideo", "Video", "VideoFile", "is_live", "is_video", "open_video"]
