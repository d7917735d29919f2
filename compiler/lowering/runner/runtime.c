// The part of the TVM runtime that compiled libraries call, with nothing but the C library: errors, workspace, threads.
//
// TVM's own is in C++ and needs the C++ library that it was built with, which boards do not always have. The functions
// have the names and types of tvm/runtime/c_backend_api.h and tvm/ffi/c_api.h.

#define _GNU_SOURCE

#include "runtime.h"

#include <dlfcn.h>
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { kAlignment = 64, kMaxThreads = 256, kPauses = 1 << 9, kSpins = 1 << 13 };

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

// --- Threads ---------------------------------------------------------------------------------------------------------

typedef struct {
  void* unused;
  int32_t count;
} Group;  // TVMParallelGroupEnv

typedef int (*Task)(int index, Group* group, void* data);

static struct {
  Task task;
  void* data;
  int count;
  atomic_bool is_failed;
  atomic_uint round;               // a new number is a new job
  atomic_uint taken[kMaxThreads];  // by share of the tasks, the last round in which somebody took it
  atomic_int left;                 // shares that are not done
  atomic_int sleeping;             // workers that wait for `wake`
} job;

static int threads = 1;  // the caller is the first
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static _Thread_local int is_inside;  // of a task: what it launches itself runs in this thread

int RuntimeThreads(void) { return threads; }

// One turn of a loop that waits for another thread; after a while, somebody else may need the core.
static void Spin(unsigned turn) {
#if defined(__aarch64__)
  __asm__ volatile("yield");
#elif defined(__x86_64__)
  __asm__ volatile("pause");
#endif
  if (turn > kPauses) sched_yield();
}

static int RunTasks(Task task, void* data, int first, int step, int count) {
  Group group = {NULL, count};
  int status = 0;
  for (int i = first; i < count; i += step) status |= task(i, &group, data);
  return status;
}

// Run every `threads`-th task, unless somebody else does or did.
static void RunShare(int share, unsigned round) {
  unsigned before = round - 1;
  if (!atomic_compare_exchange_strong(&job.taken[share], &before, round)) return;
  if (RunTasks(job.task, job.data, share, threads, job.count)) atomic_store(&job.is_failed, 1);
  atomic_fetch_sub(&job.left, 1);
}

// The next kernel comes within microseconds, sooner than a sleeping thread wakes up.
static unsigned NextRound(unsigned seen) {
  for (unsigned turn = 0; turn < kSpins; Spin(turn++)) {
    if (atomic_load(&job.round) != seen) return atomic_load(&job.round);
  }
  pthread_mutex_lock(&lock);
  atomic_fetch_add(&job.sleeping, 1);
  while (atomic_load(&job.round) == seen) pthread_cond_wait(&wake, &lock);
  atomic_fetch_sub(&job.sleeping, 1);
  pthread_mutex_unlock(&lock);
  return atomic_load(&job.round);
}

static void* Work(void* number) {
  is_inside = 1;
  for (unsigned round = 0;;) {
    round = NextRound(round);
    RunShare((int)(intptr_t)number, round);
  }
  return NULL;
}

static int ParallelLaunch(Task task, void* data, int count) {
  if (count == 0) count = threads;
  if (is_inside || threads == 1) return RunTasks(task, data, 0, 1, count) ? -1 : 0;
  job.task = task, job.data = data, job.count = count;
  atomic_store(&job.is_failed, 0);
  atomic_store(&job.left, threads);
  unsigned round = atomic_fetch_add(&job.round, 1) + 1;
  if (atomic_load(&job.sleeping)) {
    pthread_mutex_lock(&lock);
    pthread_cond_broadcast(&wake);
    pthread_mutex_unlock(&lock);
  }
  is_inside = 1;
  for (int share = 0; share < threads; ++share) RunShare(share, round);  // its own, and those of workers that are late
  is_inside = 0;
  for (unsigned turn = 0; atomic_load(&job.left);) Spin(turn++);
  return atomic_load(&job.is_failed) ? -1 : 0;
}

// The cores that this process may use; `taskset` chooses them.
static int Cores(void) {
  cpu_set_t cores;
  return sched_getaffinity(0, sizeof cores, &cores) == 0 ? CPU_COUNT(&cores) : 1;
}

static void StartThreads(int wanted) {
  int cores = Cores();
  wanted = wanted < cores ? wanted : cores;
  wanted = wanted < kMaxThreads ? wanted : kMaxThreads;
  pthread_t started[kMaxThreads];
  int count = 1;
  // Workers read `threads` when the first job comes.
  while (count < wanted && !pthread_create(&started[count], NULL, Work, (void*)(intptr_t)count)) ++count;
  threads = count;
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
  if (!network) {
    snprintf(error, sizeof error, "%s", dlerror());
    return NULL;
  }
  KeepFreedMemory();
  StartThreads(wanted ? wanted : network->threads);
  Provide(library, "__TVMBackendAllocWorkspace", AllocWorkspace);
  Provide(library, "__TVMBackendFreeWorkspace", FreeWorkspace);
  Provide(library, "__TVMBackendParallelLaunch", ParallelLaunch);
  return network->load_weights() ? NULL : network;
}
