// The part of the TVM runtime that a network on a DSP calls, where it is linked into the program: one thread.
//
// On a board, a program in the DSP's system does the same, and may share the tasks of ParallelLaunch among threads.

#include "runtime.h"

#include <stdlib.h>
#include <string.h>

enum { kAlignment = 128 };  // a register

static char error[512];

const char* RuntimeError(void) { return error; }

void TVMFFIErrorSetRaisedFromCStrParts(const char* kind, const char** parts, int32_t count) {
  error[0] = 0;
  for (int32_t i = 0; i < count; ++i) {
    if (parts[i]) strncat(error, parts[i], sizeof error - 1 - strlen(error));
  }
}

void TVMFFIErrorSetRaisedFromCStr(const char* kind, const char* message) {
  TVMFFIErrorSetRaisedFromCStrParts(kind, &message, 1);
}

static void* AllocWorkspace(int device, int number, uint64_t bytes, int type_code, int type_bits) {
  if (bytes > SIZE_MAX - kAlignment) return NULL;
  return aligned_alloc(kAlignment, (size_t)((bytes + kAlignment - 1) / kAlignment * kAlignment));
}

static int FreeWorkspace(int device, int number, void* memory) {
  free(memory);
  return 0;
}

typedef struct {
  void* unused;
  int32_t count;
} Group;  // TVMParallelGroupEnv

static int ParallelLaunch(int (*task)(int, void*, void*), void* data, int count) {
  Group group = {NULL, count ? count : 1};
  int status = 0;
  for (int i = 0; i < group.count; ++i) status |= task(i, &group, data);
  return status ? -1 : 0;
}

int RuntimeThreads(void) { return 1; }

extern const NncNetwork nnc_network;
extern void* (*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int);
extern int (*__TVMBackendFreeWorkspace)(int, int, void*);
extern int (*__TVMBackendParallelLaunch)(int (*)(int, void*, void*), void*, int);

const NncNetwork* RuntimeLoad(const char* path, int threads) {
  __TVMBackendAllocWorkspace = AllocWorkspace;
  __TVMBackendFreeWorkspace = FreeWorkspace;
  __TVMBackendParallelLaunch = ParallelLaunch;
  return nnc_network.load_weights() ? NULL : &nnc_network;
}
