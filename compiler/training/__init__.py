"""Training a graph with torch: the graph as a module, the loop, and what both are told.

It takes graphs, data and options, and knows nothing of recipes; `training_pass` is what the passes share that call it.
torch, an optional package, is imported only in the modules of this folder that compute; `options` can be read without
it.
"""

import os

# Read when torch is loaded. Its threads wait for each other many times per step; where other programs want the cores,
# spinning meanwhile made steps take twice as long, and where nobody does, sleeping costs nothing that was measured.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
