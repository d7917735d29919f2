"""fine-tune: training of the weights that a network has."""

from typing import ClassVar

import onnx_graphsurgeon as gs

from nnc.rewrite import Context
from nnc.training.training_pass import TrainingPass


class FineTune(TrainingPass):
    """Train the weights of the network on the training data: what pruning and splitting cost comes back.

    Conv(x, W, B)  ->  Conv(x, W', B')     the same nodes with other weights

    Trained, with SGD or AdamW, a learning rate that falls along a cosine, and images that are cut and mirrored at
    random. BatchNormalization takes the statistics of the training data; where it is folded, layers are trained with
    their bias. With `distill`, the network learns from the one that the recipe began with, or from [data]'s teacher,
    and needs no labels. Where a network ends in Softmax, the loss is of what that reads. Every epoch is kept in the
    output folder until the compile is complete: one that was killed goes on from there.
    Declines nothing; integers are not trained.

    Reference: Hinton, Vinyals, Dean, Distilling the knowledge in a neural network, 2015; Heo et al., Knowledge
    transfer via distillation of activation boundaries formed by hidden neurons, AAAI 2019.
    """

    name: ClassVar[str] = "fine-tune"

    def run(self, graph: gs.Graph, context: Context) -> int:
        from nnc.training.loop import train
        from nnc.training.module import GraphModule

        module = GraphModule(graph)
        if self.planned_only(graph, context):
            return 0
        train(module, self.plan(context))
        return module.write_back()
