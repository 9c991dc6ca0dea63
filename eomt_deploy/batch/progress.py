"""The progress inside of shards that are not finished yet."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Progress:
    """State of the unfinished shards; it runs as a Ray actor that all models report to.

    Attributes:
        running: shard -> number of its images that are done, and how many have no result.
        remarks: lines for the user, each once: what the models run on, and their warnings.
    """

    running: dict[int, tuple[int, int]] = field(default_factory=dict)
    where: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def report(self, shard: int, done: int, failed: int) -> None:
        """A model worked on a shard; 0 images are done when it begins (again)."""
        self.running[shard] = (done, failed)

    def opened(self, where: str, remarks: list[str]) -> None:
        """A model was opened."""
        self.where.append(where)
        self.remarks += [remark for remark in remarks if remark not in self.remarks]

    def finished(self, shards: list[int]) -> tuple[int, int, list[str], list[str]]:
        """Forget shards that the driver knows to be finished.

        Returns:
            number of done and failed images in the others, where models run, and remarks.
        """
        for shard in shards:
            self.running.pop(shard, None)
        done = sum(count for count, _ in self.running.values())
        failed = sum(count for _, count in self.running.values())
        return done, failed, self.where, self.remarks
