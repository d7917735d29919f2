"""A compiled library on the machine that it was compiled for, through the TVM runtime."""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nnc.errors import NncError


class Library:
    """module.so in this process."""

    def __init__(self, path: Path, threads: int) -> None:
        """Raises NncError where the file is not a library that this machine can load."""
        if not path.is_file():
            raise NncError(f"{path}: no such file")
        os.environ["TVM_NUM_THREADS"] = str(threads)  # TVM's own choice is half of the cores
        os.environ.setdefault("TVM_BIND_THREADS", "0")  # bound to a core, a thread waits for whoever else is there
        import tvm
        from tvm import relax

        self._device = tvm.cpu()
        try:
            self._module = tvm.runtime.load_module(str(path.resolve()))
            self._machine = relax.VirtualMachine(self._module, self._device)
            tvm.get_global_func("runtime.config_threadpool")(1, threads)  # of libraries without threads of their own
            for name, arguments in (("start_threads", (threads,)), ("load_weights", ())):
                self._call(name, *arguments)
        except Exception as error:  # TVM raises RuntimeError, OSError and others of its own
            reason = str(error).strip().splitlines()[0]
            raise NncError(f"{path}: can't be loaded on this {platform.machine()} machine: {reason}") from error
        self._tensor = tvm.runtime.tensor
        self._turn = threading.Lock()

    def _call(self, name: str, *arguments: int) -> None:
        """Call a function that libraries of older versions don't have."""
        if self._module.implements_function(name, query_imports=True):
            self._module.get_function(name, query_imports=True)(*arguments)

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs for `inputs`, both in the model's order, with the shapes and dtypes it declares.

        Callers at the same time take turns: TVM's machine has one stack.
        """
        with self._turn:
            result = self._machine["main"](*(self._tensor(np.asarray(x, order="C"), self._device) for x in inputs))
        return [result.numpy()] if hasattr(result, "numpy") else [each.numpy() for each in result]

    def bind(self, inputs: Sequence[np.ndarray]) -> None:
        """Keep the inputs in the runtime, so that `run_bound` measures nothing but the network."""
        self._machine.set_input("main", *(self._tensor(np.asarray(x, order="C"), self._device) for x in inputs))

    def run_bound(self) -> None:
        """One inference on the inputs of `bind`."""
        self._machine.invoke_stateful("main")

    def profile(self, inputs: Sequence[np.ndarray], steps: int, repeats: int = 10) -> np.ndarray:
        """The least milliseconds of every step of the network over `repeats` runs, float64 [steps]."""
        outputs = self.run(inputs)
        arrays = [self._tensor(np.asarray(x, order="C"), self._device) for x in (*inputs, *outputs)]
        seconds = self._tensor(np.zeros(steps), self._device)
        profile = self._module.get_function("profile", query_imports=True)
        runs = []
        for _ in range(repeats):
            profile(*arrays, seconds)
            runs.append(seconds.numpy())
        return np.min(runs, axis=0) * 1e3
