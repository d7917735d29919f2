"""The rewrite passes: one file each, called like the pass."""

from nnc.passes.cast_fp16 import CastFp16
from nnc.passes.check_accuracy import CheckAccuracy
from nnc.passes.compress import Compress
from nnc.passes.correct_bias import CorrectBias
from nnc.passes.equalize_ranges import EqualizeRanges
from nnc.passes.fine_tune import FineTune
from nnc.passes.fold_affine import FoldAffine
from nnc.passes.fold_batchnorm import FoldBatchNorm
from nnc.passes.fold_constants import FoldConstants
from nnc.passes.fuse_activations import FuseActivations
from nnc.passes.fuse_gates import FuseGates
from nnc.passes.fuse_gemm import FuseGemm
from nnc.passes.fuse_padding import FusePadding
from nnc.passes.insert_qdq import InsertQdq
from nnc.passes.merge_duplicates import MergeDuplicates
from nnc.passes.merge_views import MergeViews
from nnc.passes.pack_weights import PackWeights
from nnc.passes.prune_channels import PruneChannels
from nnc.passes.prune_gradually import PruneGradually
from nnc.passes.reduce_resolution import ReduceResolution
from nnc.passes.remove_dead_nodes import RemoveDeadNodes
from nnc.passes.remove_identity import RemoveIdentity
from nnc.passes.restructure_bottlenecks import RestructureBottlenecks
from nnc.passes.round_adaptively import RoundAdaptively
from nnc.passes.simplify_shapes import SimplifyShapes
from nnc.passes.split_conv_cp import SplitConvCp
from nnc.passes.split_conv_spatial import SplitConvSpatial
from nnc.passes.split_conv_svd import SplitConvSvd
from nnc.passes.split_conv_tucker import SplitConvTucker
from nnc.passes.split_gemm_svd import SplitGemmSvd
from nnc.passes.train_quantized import TrainQuantized
from nnc.rewrite import Pass

#: Exact passes that need neither parameters nor data, in the order in which they leave the fewest nodes.
GRAPH_PASSES: tuple[type[Pass], ...] = (
    RemoveDeadNodes,
    SimplifyShapes,
    FuseGemm,
    FoldConstants,
    RemoveIdentity,
    MergeViews,
    MergeDuplicates,
    FusePadding,
    FuseGates,
    FoldAffine,
    FoldBatchNorm,
    FuseActivations,
)

#: Every pass that a recipe can name.
PASSES: tuple[type[Pass], ...] = (
    *GRAPH_PASSES, Compress, PruneChannels, SplitGemmSvd, SplitConvSvd, SplitConvSpatial, SplitConvCp, SplitConvTucker,
    ReduceResolution, RestructureBottlenecks, FineTune, PruneGradually, EqualizeRanges, InsertQdq, TrainQuantized,
    RoundAdaptively, CorrectBias, CastFp16, PackWeights, CheckAccuracy,
)  # fmt: skip
