// The threads that share the kernels of a library, in place of TVM's: what the system or a slow core holds up is done by
// whoever is free.
//
// A kernel is split into tasks, in equal shares for the threads. Each does its own share from the front, so that it finds
// in its caches what it wrote there in the kernel before, and then those of others from the back. Cores that are equal
// have one task each, because an uneven number of parts costs more than it gains; unequal ones have several.

#define _GNU_SOURCE

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <unistd.h>

#include <tvm/ffi/c_api.h>

#include "nnc.h"

#define EXPORT __attribute__((visibility("default")))

enum { kMaxThreads = 256, kMaxTasks = UINT16_MAX, kPauses = 1 << 9, kSpins = 1 << 13, kCacheLine = 64 };

typedef struct {
  void* unused;
  int32_t count;
} Group;  // TVMParallelGroupEnv

typedef int (*Task)(int index, void* group, void* data);

extern int (*__TVMBackendParallelLaunch)(Task task, void* data, int count);
extern const NncNetwork nnc_network;

// The tasks of a share that nobody has taken, in one number, so that a thread which comes too late for a job takes none
// of the next: the job's round in the upper half, then the end, then the first.
typedef struct {
  _Alignas(kCacheLine) atomic_ullong tasks;
} Share;

static struct {
  Task task;
  void* data;
  int count;
  atomic_bool is_failed;
  atomic_uint round;    // a new number is a new job
  atomic_int left;      // tasks that are not done
  atomic_int sleeping;  // workers that wait for `wake`
  Share shares[kMaxThreads];
} job;

static int threads = 1;  // the caller is the first
static pthread_t workers[kMaxThreads];
static pid_t owner;  // a fork has no workers
static atomic_bool is_ending;
static atomic_flag is_busy = ATOMIC_FLAG_INIT;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static _Thread_local bool is_inside;  // of a task: what it launches itself runs in this thread

// One turn of a loop that waits for another thread; after a while, somebody else may need the core.
static void Spin(unsigned turn) {
#if defined(__aarch64__)
  __asm__ volatile("yield");
#elif defined(__x86_64__)
  __asm__ volatile("pause");
#endif
  if (turn > kPauses) sched_yield();
}

static int RunAlone(Task task, void* data, int count) {
  Group group = {NULL, count};
  int status = 0;
  for (int i = 0; i < count; ++i) status |= task(i, &group, data);
  return status ? -1 : 0;
}

// A task of the share, or -1: its owner takes the first, others the last.
static int Take(Share* share, unsigned round, bool is_owner) {
  unsigned long long tasks = atomic_load(&share->tasks);
  for (;;) {
    int first = (int)(tasks & kMaxTasks), end = (int)(tasks >> 16 & kMaxTasks);
    if (tasks >> 32 != round || first >= end) return -1;
    unsigned long long rest = is_owner ? tasks + 1 : tasks - (1 << 16);
    if (atomic_compare_exchange_weak(&share->tasks, &tasks, rest)) return is_owner ? first : end - 1;
  }
}

static void Help(int number, unsigned round) {
  for (int i = 0; i < threads; ++i) {
    Share* share = &job.shares[(number + i) % threads];
    for (int task; (task = Take(share, round, i == 0)) >= 0;) {
      Group group = {NULL, job.count};
      if (job.task(task, &group, job.data)) atomic_store(&job.is_failed, true);
      atomic_fetch_sub(&job.left, 1);
    }
  }
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
  is_inside = true;
  for (unsigned round = 0; !atomic_load(&is_ending);) {
    round = NextRound(round);
    Help((int)(intptr_t)number, round);
  }
  return NULL;
}

static unsigned Publish(void) {
  unsigned round = atomic_fetch_add(&job.round, 1) + 1;
  if (atomic_load(&job.sleeping)) {
    pthread_mutex_lock(&lock);
    pthread_cond_broadcast(&wake);
    pthread_mutex_unlock(&lock);
  }
  return round;
}

static void Divide(Task task, void* data, int count) {
  job.task = task, job.data = data, job.count = count;
  atomic_store(&job.is_failed, false);
  atomic_store(&job.left, count);
  unsigned long long round = (atomic_load(&job.round) + 1ull) & UINT32_MAX;
  for (int i = 0; i < threads; ++i) {
    unsigned long long first = (unsigned long long)count * i / threads;
    unsigned long long end = (unsigned long long)count * (i + 1) / threads;
    atomic_store(&job.shares[i].tasks, round << 32 | end << 16 | first);
  }
}

// TVMBackendParallelLaunch. A second caller at the same time does its kernel alone.
static int Launch(Task task, void* data, int count) {
  bool is_alone = threads == 1 || is_inside || count > kMaxTasks || owner != getpid();
  if (is_alone || atomic_flag_test_and_set(&is_busy)) return RunAlone(task, data, count ? count : 1);
  Divide(task, data, count ? count : threads * nnc_network.tasks);
  unsigned round = Publish();
  is_inside = true;
  Help(0, round);
  is_inside = false;
  for (unsigned turn = 0; atomic_load(&job.left);) Spin(turn++);
  int status = atomic_load(&job.is_failed) ? -1 : 0;
  atomic_flag_clear(&is_busy);
  return status;
}

// The cores that this process may use; `taskset` chooses them.
static int Cores(void) {
  cpu_set_t cores;
  return sched_getaffinity(0, sizeof cores, &cores) == 0 ? CPU_COUNT(&cores) : 1;
}

static void Stop(void) {
  if (owner != getpid()) return;
  atomic_store(&is_ending, true);
  Publish();
  for (int i = 1; i < threads; ++i) pthread_join(workers[i], NULL);
  atomic_store(&is_ending, false);
  threads = 1;
}

static int Least(int left, int right) { return left < right ? left : right; }

// Let so many threads share every kernel from now on, but not more than there are cores; returns how many. Not while a
// kernel runs.
EXPORT int nnc_start_threads(int wanted) {
  Stop();
  atomic_flag_clear(&is_busy);  // a fork may have come between
  owner = getpid();
  wanted = Least(Least(wanted, Cores()), Least(kMaxThreads, kMaxTasks / nnc_network.tasks));
  int count = 1;
  // Workers read `threads` when the first job comes.
  while (count < wanted && !pthread_create(&workers[count], NULL, Work, (void*)(intptr_t)count)) ++count;
  threads = count;
  __TVMBackendParallelLaunch = Launch;
  return threads;
}

// start_threads(count): the same for TVM
EXPORT int __tvm_ffi_start_threads(void* self, const TVMFFIAny* arguments, int32_t count, TVMFFIAny* result) {
  *result = (TVMFFIAny){.type_index = kTVMFFIInt, .v_int64 = nnc_start_threads((int)arguments[0].v_int64)};
  return 0;
}

// The code that they execute goes when the library is unloaded.
__attribute__((destructor)) static void End(void) { Stop(); }
