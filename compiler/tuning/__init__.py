"""Auto-tuned schedules: for each layer of a network, the plan of its template that is fastest where it will run.

records.py   what was measured, in files that survive; what `nnc compile` takes plans from
tasks.py     the layers of a network
search.py    which candidates of a layer to measure next, and searches.py of which layers
measure.py   measuring them, in a process that may die: on this machine, on boards, or in emulation
tune.py      the time goes where the network's time goes

It takes a graph and a target, and knows nothing of recipes and passes.
"""
