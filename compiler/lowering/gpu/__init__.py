"""GPUs: kernels in OpenCL C and CUDA, from the same steps as for a CPU.

product.py     the loop nest of matrix products; tile.py, how it is shared among threads
conv2d.py, depthwise.py, gemm.py, pool.py, relayout.py   the templates
threads.py     everything else: the loops of the CPU's functions as threads
layers.py      which nodes go to which template
device.py      TVM's lowering to source, and what to launch
build.py       the files of a compile; network.py describes the steps, nvrtc.py compiles CUDA
opencl.py, cuda.py   run them on this machine
"""
