// The part of the TVM runtime that compiled libraries call, with nothing but the C library: errors and workspace.
//
// TVM's own is in C++ and needs the C++ library that it was built with, which boards do not always have. The functions
// have the names and types of tvm/runtime/c_backend_api.h and tvm/ffi/c_api.h.

#define _GNU_SOURCE

#include "runtime.h"

#include <dlfcn.h>
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { kAlignment = 64 };

static int threads = 1;

int RuntimeThreads(void) { return threads; }

// --- Errors ----------------------------------------------------------------------------------------------------------

static char error[512];
static pthread_mutex_t error_lock = PTHREAD_MUTEX_INITIALIZER;

const char* RuntimeError(void) { return error; }

void TVMFFIErrorSetRaisedFromCStrParts(const char* kind, const char** parts, int32_t count) {
  pthread_mutex_lock(&error_lock);
  error[0] = 0;
  for (int32_t i = 0; i < count; ++i) {
    if (parts[i]) strncat(error, parts[i], sizeof error - 1 - strlen(error));
  }
  pthread_mutex_unlock(&error_lock);
}

void TVMFFIErrorSetRaisedFromCStr(const char* kind, const char* message) {
  TVMFFIErrorSetRaisedFromCStrParts(kind, &message, 1);
}

// --- Workspace -------------------------------------------------------------------------------------------------------

static void* AllocWorkspace(int device, int number, uint64_t bytes, int type_code, int type_bits) {
  return aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
}

static int FreeWorkspace(int device, int number, void* memory) {
  free(memory);
  return 0;
}

// Memory that is given back to the system would have to be cleared page by page in the next inference.
static void KeepFreedMemory(void) {
#ifdef M_MMAP_MAX
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, -1);
#endif
}

// --- The library -----------------------------------------------------------------------------------------------------

// Point one of the library's variables for functions of the runtime to `function`.
static void Provide(void* library, const char* name, void* function) {
  void** variable = dlsym(library, name);
  if (variable) *variable = function;
}

const NncNetwork* RuntimeLoad(const char* path, int wanted) {
  char* file = realpath(path, NULL);  // dlopen would look for a name without a folder elsewhere
  if (!file) {
    snprintf(error, sizeof error, "%s: %s", path, strerror(errno));
    return NULL;
  }
  void* library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
  free(file);
  const NncNetwork* network = library ? dlsym(library, "nnc_network") : NULL;
  int (*start)(int) = network ? (int (*)(int))dlsym(library, "nnc_start_threads") : NULL;
  if (!start) {
    snprintf(error, sizeof error, "%s", dlerror());
    return NULL;
  }
  KeepFreedMemory();
  Provide(library, "__TVMBackendAllocWorkspace", AllocWorkspace);
  Provide(library, "__TVMBackendFreeWorkspace", FreeWorkspace);
  threads = start(wanted ? wanted : network->threads);
  return network->load_weights() ? NULL : network;
}
