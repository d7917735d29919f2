// What a compiled library offers to programs that know nothing of TVM: its symbol `nnc_network`.
//
// The library asks the program for what the TVM runtime does otherwise, see runtime.c, and brings its own threads, except
// on a DSP: `nnc_start_threads`, see threads.c.

#ifndef NNC_H
#define NNC_H

#include <stdint.h>

typedef struct {
  const char* name;
  const char* type;  // as .npy files write it: "<f4", "|i1"
  int32_t rank;
  const int64_t* shape;
} NncTensor;

typedef struct {
  int32_t input_count, output_count;
  const NncTensor* tensors;  // the inputs, then the outputs
  int32_t threads;           // that it was compiled for
  int32_t tasks;             // per thread, that a kernel is split into
  // Decodes packed weights: what the first inference does otherwise. 0, or -1 after an error.
  int (*load_weights)(void);
  // One inference. `arrays` are the inputs and then the outputs, each at a multiple of 64 bytes; for a DSP of 128, with
  // 128 bytes behind it that may be read. 0, or -1.
  int (*run)(void* const* arrays);
} NncNetwork;

// Let so many threads share every kernel, at most as many as there are cores; returns how many.
int nnc_start_threads(int wanted);

#endif
