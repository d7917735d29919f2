"""Kernel templates: each file lowers one class of operators to one loop nest, written down as TIR.

A template is a frozen dataclass that describes the problem (sizes, strides, blocks), a plan (register tile and split of
the work) that is chosen from the problem and the unit's figures, and three functions:

    best_plan(problem, unit) -> plan
    plans(problem, unit) -> plans                           where there are others that may be faster (nnc.tuning)
    pack(W, plan, ...) -> np.ndarray                        weights in the order in which the kernel reads them
    compute(X, W, ..., plan, extras, epilogue) -> te.Tensor

`compute` takes `te.Tensor`s: the input, the packed weights, and `extras`, everything that the epilogue reads beside the
value itself (bias, residual, scales). `epilogue(value, index) -> expression` is called once per output element, on
scalars inside of a loop over the lanes; index is `(n, block, y, x, lane)` in a blocked layout. The body is a
`te.extern` whose loops are emitted with TVM's IRBuilder: what is written is what runs, there is nothing to schedule.

Activations are in blocked layout NCHW[x]c: `[n, channels / x, height, width, x]`, with x the lanes of a vector.
Channels are padded to whole blocks; the values in the padding are unspecified but finite, and weights are zero there.
Padding of images is never materialised: rows outside of the image are left out by loop bounds, columns by emitting the
tiles at the left and the right edge separately (`window.py`).

`elementwise.py`, `slices.py`, `matmul.py`, `scatter.py` and `topk.py` compute on plain arrays of any shape, and have no
epilogue; `loops.py` has the loops that they share.
"""
