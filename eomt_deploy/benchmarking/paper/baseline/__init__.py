"""ViT-Adapter + Mask2Former, the baseline of the EoMT paper, and the steps from it to EoMT.

The authors of EoMT did not release their baseline. This one follows the descriptions of
ViT-Adapter (arXiv 2205.08534), Mask2Former (arXiv 2112.01527) and Deformable DETR
(arXiv 2010.04159). It is checked against the parameters and MACs in the EoMT paper
(tests/benchmarking/paper/test_counting.py). Its weights are random, because it only measures speed.
Shapes: B batch, D width of the ViT, N patches, P class token and registers, Q queries, C classes;
"1/8" is a feature map with an eighth of the image's height and width.
"""

from eomt_deploy.benchmarking.paper.baseline.network import Mask2Former

__all__ = ["Mask2Former"]
