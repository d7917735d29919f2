/* Runs the kernels that nnc compiled for a GPU with OpenCL: run_opencl FOLDER [REPEATS] INPUT... OUTPUT...
 *
 * FOLDER holds network.json, weights.bin and kernels.cl. Inputs and outputs are files of raw values, in the order and
 * with the sizes that network.json says. With REPEATS, prints the milliseconds of each inference.
 *
 * Build it on the board: cc -O2 run_opencl.c -lOpenCL -o run_opencl */
#include "network_reader.h"

/* The part of OpenCL 1.2 that is used, so that no headers are needed to build this. */
typedef int32_t cl_int;
typedef uint32_t cl_uint;
typedef uint64_t cl_bits;
typedef struct _cl_platform_id* cl_platform_id;
typedef struct _cl_device_id* cl_device_id;
typedef struct _cl_context* cl_context;
typedef struct _cl_command_queue* cl_command_queue;
typedef struct _cl_mem* cl_mem;
typedef struct _cl_program* cl_program;
typedef struct _cl_kernel* cl_kernel;
typedef struct _cl_event* cl_event;
typedef struct {
  size_t origin, size;
} cl_buffer_region;
enum {
  CL_SUCCESS = 0,
  CL_TRUE = 1,
  CL_MEM_READ_WRITE = 1,
  CL_DEVICE_TYPE_GPU = 4,
  CL_PROGRAM_BUILD_LOG = 0x1183,
  CL_BUFFER_CREATE_TYPE_REGION = 0x1220
};
static const cl_bits CL_DEVICE_TYPE_ALL = 0xFFFFFFFF;
extern cl_int clGetPlatformIDs(cl_uint, cl_platform_id*, cl_uint*);
extern cl_int clGetDeviceIDs(cl_platform_id, cl_bits, cl_uint, cl_device_id*, cl_uint*);
extern cl_context clCreateContext(const intptr_t*, cl_uint, const cl_device_id*, void*, void*, cl_int*);
extern cl_command_queue clCreateCommandQueue(cl_context, cl_device_id, cl_bits, cl_int*);
extern cl_program clCreateProgramWithSource(cl_context, cl_uint, const char**, const size_t*, cl_int*);
extern cl_int clBuildProgram(cl_program, cl_uint, const cl_device_id*, const char*, void*, void*);
extern cl_int clGetProgramBuildInfo(cl_program, cl_device_id, cl_uint, size_t, void*, size_t*);
extern cl_mem clCreateBuffer(cl_context, cl_bits, size_t, void*, cl_int*);
extern cl_mem clCreateSubBuffer(cl_mem, cl_bits, cl_uint, const void*, cl_int*);
extern cl_kernel clCreateKernel(cl_program, const char*, cl_int*);
extern cl_int clSetKernelArg(cl_kernel, cl_uint, size_t, const void*);
extern cl_int clEnqueueNDRangeKernel(cl_command_queue, cl_kernel, cl_uint, const size_t*, const size_t*, const size_t*,
                                     cl_uint, const cl_event*, cl_event*);
extern cl_int clEnqueueCopyBuffer(cl_command_queue, cl_mem, cl_mem, size_t, size_t, size_t, cl_uint, const cl_event*,
                                  cl_event*);
extern cl_int clEnqueueCopyBufferRect(cl_command_queue, cl_mem, cl_mem, const size_t*, const size_t*, const size_t*,
                                      size_t, size_t, size_t, size_t, cl_uint, const cl_event*, cl_event*);
extern cl_int clEnqueueWriteBuffer(cl_command_queue, cl_mem, cl_uint, size_t, size_t, const void*, cl_uint,
                                   const cl_event*, cl_event*);
extern cl_int clEnqueueReadBuffer(cl_command_queue, cl_mem, cl_uint, size_t, size_t, void*, cl_uint, const cl_event*,
                                  cl_event*);
extern cl_int clFinish(cl_command_queue);

static cl_context context;
static cl_command_queue queue;

static void check(cl_int status, const char* what) {
  if (status != CL_SUCCESS) fail("%s: OpenCL error %d", what, (int)status);
}

static cl_device_id open_device(void) {
  cl_platform_id platforms[8];
  cl_uint count = 0;
  cl_device_id device;
  check(clGetPlatformIDs(8, platforms, &count), "no OpenCL platform");
  for (cl_uint i = 0; i < count && i < 8; ++i)
    if (clGetDeviceIDs(platforms[i], CL_DEVICE_TYPE_GPU, 1, &device, NULL) == CL_SUCCESS) return device;
  for (cl_uint i = 0; i < count && i < 8; ++i)
    if (clGetDeviceIDs(platforms[i], CL_DEVICE_TYPE_ALL, 1, &device, NULL) == CL_SUCCESS) return device;
  fail("no OpenCL device");
  return NULL;
}

static cl_program build(cl_device_id device, const char* source) {
  cl_int status;
  cl_program program = clCreateProgramWithSource(context, 1, &source, NULL, &status);
  check(status, "clCreateProgramWithSource");
  if (clBuildProgram(program, 1, &device, "", NULL, NULL) != CL_SUCCESS) {
    static char log[16384];
    clGetProgramBuildInfo(program, device, CL_PROGRAM_BUILD_LOG, sizeof log - 1, log, NULL);
    fail("the kernels can't be compiled: %s", log);
  }
  return program;
}

static cl_mem room(uint64_t bytes) {
  cl_int status;
  cl_mem memory = clCreateBuffer(context, CL_MEM_READ_WRITE, bytes ? bytes : 4, NULL, &status);
  check(status, "clCreateBuffer");
  return memory;
}

static cl_mem part(cl_mem whole, const Argument* argument) {
  cl_buffer_region region = {argument->offset, argument->bytes};
  cl_int status;
  if (argument->offset == 0) return whole;
  cl_mem memory = clCreateSubBuffer(whole, CL_MEM_READ_WRITE, CL_BUFFER_CREATE_TYPE_REGION, &region, &status);
  check(status, "clCreateSubBuffer");
  return memory;
}

static cl_mem memories[MEMORIES], staging;

static void prepare(Network* network, cl_program program) {
  for (int i = 0; i < network->step_count; ++i) {
    Step* step = &network->steps[i];
    cl_int status;
    if (step->is_copy) continue;
    cl_kernel kernel = clCreateKernel(program, step->kernel, &status); /* one per step: it keeps its arguments */
    check(status, step->kernel);
    for (int a = 0; a < step->argument_count; ++a) {
      cl_mem memory = part(memories[step->arguments[a].memory], &step->arguments[a]);
      check(clSetKernelArg(kernel, (cl_uint)a, sizeof memory, &memory), "clSetKernelArg");
    }
    step->handle = kernel;
  }
}

/* Rows of `bytes` bytes, `stride` bytes apart, from `offset` on. */
typedef struct {
  cl_mem memory;
  size_t offset, stride;
} Rows;

static void copy_rows(Rows from, Rows to, uint64_t rows, uint64_t bytes) {
  const size_t region[] = {bytes, rows, 1}, source[] = {from.offset, 0, 0}, result[] = {to.offset, 0, 0};
  check(clEnqueueCopyBufferRect(queue, from.memory, to.memory, source, result, region, from.stride, 0, to.stride, 0, 0,
                                NULL, NULL), "clEnqueueCopyBufferRect");
}

static void copy(const Step* step) {
  const Argument *source = &step->arguments[0], *result = &step->arguments[1];
  uint64_t rows = step->copy[0], bytes = step->copy[1];
  Rows from = {memories[source->memory], source->offset, step->copy[2]}, between = {staging, 0, bytes};
  Rows to = {memories[result->memory], result->offset, step->copy[3]};
  if (rows == 1) {
    check(clEnqueueCopyBuffer(queue, from.memory, to.memory, from.offset, to.offset, bytes, 0, NULL, NULL),
          "clEnqueueCopyBuffer");
  } else if (from.memory != to.memory) {
    copy_rows(from, to, rows, bytes);
  } else { /* within one buffer, OpenCL copies no rows to others that are further apart */
    copy_rows(from, between, rows, bytes);
    copy_rows(between, to, rows, bytes);
  }
}

static uint64_t staged_bytes(const Network* network) {
  uint64_t most = 0;
  for (int i = 0; i < network->step_count; ++i) {
    const Step* step = &network->steps[i];
    if (step->is_copy && step->copy[0] * step->copy[1] > most) most = step->copy[0] * step->copy[1];
  }
  return most;
}

static void infer(const Network* network) {
  for (int i = 0; i < network->step_count; ++i) {
    const Step* step = &network->steps[i];
    if (!step->is_copy) {
      size_t global[3], local[3];
      for (int axis = 0; axis < 3; ++axis) {
        local[axis] = step->group[axis];
        global[axis] = (size_t)step->grid[axis] * step->group[axis];
      }
      check(clEnqueueNDRangeKernel(queue, (cl_kernel)step->handle, 3, NULL, global, local, 0, NULL, NULL), step->kernel);
      continue;
    }
    copy(step);
  }
  check(clFinish(queue), "clFinish");
}

int main(int argc, char** argv) {
  Command command = parse(argc, argv);
  Network* network = read_network(command.folder);
  require_files(&command, network);
  cl_int status;
  cl_device_id device = open_device();
  context = clCreateContext(NULL, 1, &device, NULL, NULL, &status);
  check(status, "clCreateContext");
  queue = clCreateCommandQueue(context, device, 0, &status);
  check(status, "clCreateCommandQueue");
  for (int i = 0; i < network->memory_count; ++i) memories[i] = room(network->bytes[i]);
  staging = room(staged_bytes(network));
  Bytes weights = read_file(command.folder, "weights.bin");
  if (network->bytes[WEIGHTS])
    check(clEnqueueWriteBuffer(queue, memories[WEIGHTS], CL_TRUE, 0, network->bytes[WEIGHTS], weights.data, 0, NULL,
                               NULL), "weights.bin");
  prepare(network, build(device, read_file(command.folder, "kernels.cl").data));
  for (int i = 0; i < network->input_count; ++i) {
    Bytes values = read_values(command.files[i], network->bytes[INPUTS + i]);
    check(clEnqueueWriteBuffer(queue, memories[INPUTS + i], CL_TRUE, 0, values.size, values.data, 0, NULL, NULL),
          command.files[i]);
  }
  for (int i = 0; i < command.repeats; ++i) {
    double start = milliseconds();
    infer(network);
    if (command.repeats > 1) printf("%.3f\n", milliseconds() - start);
  }
  for (int i = 0; i < network->output_count; ++i) {
    int memory = INPUTS + network->input_count + i;
    void* values = allocate(network->bytes[memory]);
    check(clEnqueueReadBuffer(queue, memories[memory], CL_TRUE, 0, network->bytes[memory], values, 0, NULL, NULL),
          "clEnqueueReadBuffer");
    write_values(command.files[network->input_count + i], values, network->bytes[memory]);
  }
  return 0;
}
