/* Runs the kernels that nnc compiled for a GPU with CUDA: run_cuda FOLDER [REPEATS] INPUT... OUTPUT...
 *
 * FOLDER holds network.json, weights.bin and kernels.ptx. Inputs and outputs are files of raw values, in the order and
 * with the sizes that network.json says. With REPEATS, prints the milliseconds of each inference.
 *
 * Build it on the board: cc -O2 run_cuda.c -lcuda -o run_cuda. A driver that is older than the PTX wants the kernels
 * compiled by its own toolkit: nvcc -ptx -arch=sm_72 kernels.cu -o kernels.ptx */
#include "network_reader.h"

/* The part of the driver's interface that is used, so that no toolkit is needed to build this. */
typedef int CUresult;
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st* CUcontext;
typedef struct CUmod_st* CUmodule;
typedef struct CUfunc_st* CUfunction;
extern CUresult cuInit(unsigned);
extern CUresult cuDeviceGet(CUdevice*, int);
extern CUresult cuDevicePrimaryCtxRetain(CUcontext*, CUdevice);
extern CUresult cuCtxSetCurrent(CUcontext);
extern CUresult cuCtxSynchronize(void);
extern CUresult cuModuleLoadData(CUmodule*, const void*);
extern CUresult cuModuleGetFunction(CUfunction*, CUmodule, const char*);
extern CUresult cuMemAlloc_v2(CUdeviceptr*, size_t);
extern CUresult cuMemcpyHtoD_v2(CUdeviceptr, const void*, size_t);
extern CUresult cuMemcpyDtoH_v2(void*, CUdeviceptr, size_t);
typedef struct {
  size_t x, y;
  int type; /* of memory */
  void* host;
  CUdeviceptr device;
  void* array;
  size_t pitch;
} Side;
typedef struct {
  Side source, result;
  size_t width, rows;
} CUDA_MEMCPY2D;
enum { CU_MEMORYTYPE_DEVICE = 2 };
extern CUresult cuMemcpy2DAsync_v2(const CUDA_MEMCPY2D*, void*);
extern CUresult cuLaunchKernel(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*,
                               void**, void**);
extern CUresult cuGetErrorString(CUresult, const char**);

static CUdeviceptr memories[MEMORIES];

static void check(CUresult status, const char* what) {
  const char* reason = "unknown error";
  if (status == 0) return;
  cuGetErrorString(status, &reason);
  fail("%s: %s", what, reason);
}

/* Rows of `bytes` bytes, every `stride` bytes, of which a single one has none. */
static Side side(CUdeviceptr first, uint64_t stride, uint64_t bytes) {
  return (Side){.type = CU_MEMORYTYPE_DEVICE, .device = first, .pitch = stride ? stride : bytes};
}

static void infer(const Network* network) {
  for (int i = 0; i < network->step_count; ++i) {
    const Step* step = &network->steps[i];
    CUdeviceptr places[MOST_ARGUMENTS];
    void* pointers[MOST_ARGUMENTS];
    for (int a = 0; a < step->argument_count; ++a) {
      places[a] = memories[step->arguments[a].memory] + step->arguments[a].offset;
      pointers[a] = &places[a];
    }
    if (!step->is_copy) {
      check(cuLaunchKernel((CUfunction)step->handle, step->grid[0], step->grid[1], step->grid[2], step->group[0],
                           step->group[1], step->group[2], 0, NULL, pointers, NULL), step->kernel);
      continue;
    }
    check(cuMemcpy2DAsync_v2(&(CUDA_MEMCPY2D){side(places[0], step->copy[2], step->copy[1]),
                                              side(places[1], step->copy[3], step->copy[1]), step->copy[1],
                                              step->copy[0]}, NULL), "cuMemcpy2DAsync");
  }
  check(cuCtxSynchronize(), "cuCtxSynchronize");
}

int main(int argc, char** argv) {
  Command command = parse(argc, argv);
  Network* network = read_network(command.folder);
  require_files(&command, network);
  CUdevice device;
  CUcontext context;
  CUmodule module;
  check(cuInit(0), "cuInit");
  check(cuDeviceGet(&device, 0), "cuDeviceGet");
  check(cuDevicePrimaryCtxRetain(&context, device), "cuDevicePrimaryCtxRetain");
  check(cuCtxSetCurrent(context), "cuCtxSetCurrent");
  check(cuModuleLoadData(&module, read_file(command.folder, "kernels.ptx").data), "kernels.ptx");
  for (int i = 0; i < network->memory_count; ++i)
    check(cuMemAlloc_v2(&memories[i], network->bytes[i] ? network->bytes[i] : 4), "cuMemAlloc");
  Bytes weights = read_file(command.folder, "weights.bin");
  check(cuMemcpyHtoD_v2(memories[WEIGHTS], weights.data, network->bytes[WEIGHTS]), "weights.bin");
  for (int i = 0; i < network->step_count; ++i) {
    CUfunction function;
    if (network->steps[i].is_copy) continue;
    check(cuModuleGetFunction(&function, module, network->steps[i].kernel), network->steps[i].kernel);
    network->steps[i].handle = function;
  }
  for (int i = 0; i < network->input_count; ++i) {
    Bytes values = read_values(command.files[i], network->bytes[INPUTS + i]);
    check(cuMemcpyHtoD_v2(memories[INPUTS + i], values.data, values.size), command.files[i]);
  }
  for (int i = 0; i < command.repeats; ++i) {
    double start = milliseconds();
    infer(network);
    if (command.repeats > 1) printf("%.3f\n", milliseconds() - start);
  }
  for (int i = 0; i < network->output_count; ++i) {
    int memory = INPUTS + network->input_count + i;
    void* values = allocate(network->bytes[memory]);
    check(cuMemcpyDtoH_v2(values, memories[memory], network->bytes[memory]), "cuMemcpyDtoH");
    write_values(command.files[network->input_count + i], values, network->bytes[memory]);
  }
  return 0;
}
