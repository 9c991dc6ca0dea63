"""ViT-Adapter + Mask2Former, the network that EoMT is measured against, and the steps between.

The authors of EoMT did not release theirs. This one is written from the descriptions of
ViT-Adapter (arXiv 2205.08534), Mask2Former (arXiv 2112.01527) and Deformable DETR
(arXiv 2010.04159), and checked by the parameters and MACs that the EoMT paper prints
(tests/benchmarking/paper/test_counting.py). Its weights are random: it is for speed, not for
accuracy.
Shapes: B batch, D width of the ViT, N patches, P class token and registers, Q queries, C classes;
"1/8" is a feature map of an eighth of the image's height and width.
"""

from eomt_deploy.benchmarking.paper.baseline.network import Mask2Former

__all__ = ["Mask2Former"]
