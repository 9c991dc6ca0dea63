"""An engine whose outputs are changed, as a faulty backend would."""

from __future__ import annotations

from eomt_deploy.backends.engine import Engine


class Changed(Engine):
    """An engine whose outputs pass through a function (class_logits, mask_logits, batch)."""

    backend, device = "changed", "cpu"

    def __init__(self, inner, change, spec=None):
        super().__init__()
        self.spec = spec or inner.spec
        self._inner, self._change = inner, change

    def _run(self, images):
        class_logits, mask_logits = self._inner.run(images)
        return self._change(class_logits.copy(), mask_logits.copy())


def same(class_logits, mask_logits):
    """No change."""
    return class_logits, mask_logits
