// Runs a compiled library so that the plugin can watch: QEMU executes this program, and plugin.c reads its marks.
//
//   driver THREADS WARM LIBRARY                            the network in a library that nnc built
//   driver THREADS WARM LIBRARY FUNCTION TYPE:SHAPE ...    one kernel, such as conv2d_0 float32:1,8,56,56,4 ...
//
// THREADS cores share the work; they are simulated one after the other. WARM is how often the network runs before the
// time that counts. A kernel runs once, and finds in the caches what it finds in a network: arrays marked with "+", which
// were computed just before.

#define _GNU_SOURCE

#include <dlfcn.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <dlpack/dlpack.h>
#include <tvm/ffi/c_api.h>

#include "marks.h"
#include "nnc.h"

enum { kMaxArrays = 256, kMaxRank = 16, kAlignment = 64 };

static int threads;

static void Mark(enum Mark mark, uint64_t value) { syscall(kMarkCall, (uint64_t)mark, value); }

static _Noreturn void Fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fputs("error: ", stderr);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  exit(1);
}

// --- What libraries need of the TVM runtime --------------------------------------------------------------------------

void TVMFFIErrorSetRaisedFromCStrParts(const char* kind, const char** parts, int32_t count) {
  char message[512] = "";
  for (int32_t i = 0; i < count; ++i) {
    if (parts[i]) strncat(message, parts[i], sizeof message - 1 - strlen(message));
  }
  Fail("%s", message);
}

void TVMFFIErrorSetRaisedFromCStr(const char* kind, const char* message) { Fail("%s", message); }

static void* Allocate(size_t bytes) {
  void* memory = aligned_alloc(kAlignment, (bytes + kAlignment) / kAlignment * kAlignment);
  if (!memory) Fail("there is not enough memory");
  return memory;
}

// A kernel asks for its scratch memory in every call, and gets the same again, as from TVM's pool.
static void* AllocWorkspace(int device, int number, uint64_t bytes, int type_code, int type_bits) {
  return Allocate(bytes);
}

static int FreeWorkspace(int device, int number, void* memory) {
  free(memory);
  return 0;
}

typedef struct {
  void* unused;
  int32_t count;
} Group;  // TVMParallelGroupEnv

typedef int (*Task)(int index, Group* group, void* data);

static int is_inside;  // of a task: what it launches itself runs on the same core

static int ParallelLaunch(Task task, void* data, int count) {
  Group group = {NULL, count ? count : threads};
  bool spreads = !is_inside;
  int status = 0;
  is_inside = 1;
  for (int i = 0; i < group.count; ++i) {
    if (spreads) Mark(kMarkWorker, (uint64_t)(i % threads) + 1);
    status |= task(i, &group, data);
  }
  if (spreads) Mark(kMarkWorker, 0), is_inside = 0;
  return status;
}

static void Provide(void* library, const char* name, void* function) {
  void** variable = dlsym(library, name);
  if (variable) *variable = function;
}

static void* Load(const char* path) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) Fail("%s", dlerror());
  Provide(library, "__TVMBackendAllocWorkspace", AllocWorkspace);
  Provide(library, "__TVMBackendFreeWorkspace", FreeWorkspace);
  Provide(library, "__TVMBackendParallelLaunch", ParallelLaunch);
  return library;
}

static TVMFFISafeCallType Function(void* library, const char* name) {
  char symbol[512];
  snprintf(symbol, sizeof symbol, "__tvm_ffi_%s", name);
  TVMFFISafeCallType function = (TVMFFISafeCallType)dlsym(library, symbol);
  if (!function) Fail("the library has no function '%s'", name);
  return function;
}

// --- Arrays ----------------------------------------------------------------------------------------------------------

static size_t Elements(const DLTensor* tensor) {
  size_t count = 1;
  for (int32_t axis = 0; axis < tensor->ndim; ++axis) count *= (size_t)tensor->shape[axis];
  return count;
}

static size_t Bytes(const DLTensor* tensor) { return Elements(tensor) * (size_t)(tensor->dtype.bits + 7) / 8; }

// Small numbers: kernels take as long for any, unless they are so small that processors compute them in software.
static void Fill(DLTensor* tensor) {
  size_t count = Elements(tensor);
  tensor->data = Allocate(Bytes(tensor));
  memset(tensor->data, 0, Bytes(tensor));
  for (size_t i = 0; i < count; ++i) {
    if (tensor->dtype.code == kDLFloat && tensor->dtype.bits == 32) ((float*)tensor->data)[i] = (float)(i % 61) / 64;
    if (tensor->dtype.code == kDLFloat && tensor->dtype.bits == 16) ((uint16_t*)tensor->data)[i] = 0x3800;  // 0.5
    if (tensor->dtype.code != kDLFloat && tensor->dtype.bits == 8) ((uint8_t*)tensor->data)[i] = i % 2;
  }
}

// "float32", "<f4": the type as TVM or numpy write it.
static DLDataType TypeOf(const char* text) {
  static const struct { const char *name, *code; DLDataType type; } types[] = {
      {"float32", "<f4", {kDLFloat, 32, 1}}, {"float16", "<f2", {kDLFloat, 16, 1}}, {"float64", "<f8", {kDLFloat, 64, 1}},
      {"int8", "|i1", {kDLInt, 8, 1}},       {"uint8", "|u1", {kDLUInt, 8, 1}},     {"int16", "<i2", {kDLInt, 16, 1}},
      {"uint16", "<u2", {kDLUInt, 16, 1}},   {"int32", "<i4", {kDLInt, 32, 1}},     {"uint32", "<u4", {kDLUInt, 32, 1}},
      {"int64", "<i8", {kDLInt, 64, 1}},     {"uint64", "<u8", {kDLUInt, 64, 1}},   {"bool", "|b1", {kDLBool, 8, 1}},
  };
  for (size_t i = 0; i < sizeof types / sizeof *types; ++i) {
    if (!strcmp(text, types[i].name) || !strcmp(text, types[i].code)) return types[i].type;
  }
  Fail("numbers of type '%s' are not known", text);
}

// "+float32:1,8,56,56,4"; whether it was computed just before.
static bool Parse(const char* text, DLTensor* tensor) {
  bool is_fresh = *text == '+';
  const char *type = text + is_fresh, *shape = strchr(text, ':');
  if (!shape) Fail("'%s' is not TYPE:SHAPE", text);
  char* name = strndup(type, (size_t)(shape - type));
  *tensor = (DLTensor){.device = {kDLCPU, 0}, .dtype = TypeOf(name), .shape = calloc(kMaxRank, sizeof(int64_t))};
  for (char* end; tensor->ndim < kMaxRank; shape = end) {
    int64_t size = strtoll(shape + 1, &end, 10);
    if (end == shape + 1 || (*end && *end != ',')) break;
    tensor->shape[tensor->ndim++] = size;
    if (!*end) break;
  }
  free(name);
  return is_fresh;
}

static TVMFFIAny Argument(DLTensor* tensor) {
  return (TVMFFIAny){.type_index = kTVMFFIDLTensorPtr, .v_ptr = tensor};
}

static void Call(TVMFFISafeCallType function, const TVMFFIAny* arguments, int count) {
  TVMFFIAny result = {.type_index = kTVMFFINone};
  if (function(NULL, arguments, count, &result)) Fail("the library failed");
}

// --- A network -------------------------------------------------------------------------------------------------------

// `profile` takes the time before and after every step: these calls mark where the steps begin and end.
static uint32_t times_taken;

int clock_gettime(clockid_t clock, struct timespec* time) {
  *time = (struct timespec){0};
  Mark(kMarkStep, times_taken % 2 ? kMarkNoStep : times_taken / 2);
  ++times_taken;
  return 0;
}

static void RunNetwork(void* library, int warm) {
  const NncNetwork* network = dlsym(library, "nnc_network");
  if (!network) Fail("of an older nnc, compile again");
  int count = network->input_count + network->output_count;
  if (count >= kMaxArrays) Fail("the model has too many inputs and outputs");
  if (network->load_weights()) Fail("the weights can't be decoded");
  static DLTensor arrays[kMaxArrays];
  static TVMFFIAny arguments[kMaxArrays];
  for (int i = 0; i < count; ++i) {
    const NncTensor* tensor = &network->tensors[i];
    arrays[i] = (DLTensor){.device = {kDLCPU, 0}, .ndim = tensor->rank, .dtype = TypeOf(tensor->type)};
    arrays[i].shape = (int64_t*)tensor->shape;
    Fill(&arrays[i]);
    arguments[i] = Argument(&arrays[i]);
  }
  DLTensor seconds = {.data = Allocate(1 << 20), .device = {kDLCPU, 0}, .ndim = 1, .dtype = TypeOf("float64")};
  arguments[count] = Argument(&seconds);
  Mark(kMarkObserve, 1);
  for (int i = 0; i < warm; ++i) Call(Function(library, "network"), arguments, count);
  times_taken = 0;
  Mark(kMarkObserve, 2);
  Call(Function(library, "profile"), arguments, count + 1);
  Mark(kMarkObserve, 0);
}

// --- One kernel ------------------------------------------------------------------------------------------------------

// The core that computes a share of an array is the one that used the same share before.
static int ReadShare(int index, Group* group, void* data) {
  const DLTensor* tensor = data;
  size_t bytes = Bytes(tensor), first = bytes * (size_t)index / (size_t)group->count;
  size_t last = bytes * ((size_t)index + 1) / (size_t)group->count;
  volatile const char* values = tensor->data;
  for (size_t at = first; at < last; at += kAlignment) (void)values[at];
  return 0;
}

static void RunKernel(void* library, const char* name, int count, char** texts) {
  if (count > kMaxArrays) Fail("the kernel has too many arguments");
  static DLTensor arrays[kMaxArrays];
  static TVMFFIAny arguments[kMaxArrays];
  static bool is_fresh[kMaxArrays];
  for (int i = 0; i < count; ++i) {
    is_fresh[i] = Parse(texts[i], &arrays[i]);
    Fill(&arrays[i]);
    arguments[i] = Argument(&arrays[i]);
  }
  TVMFFISafeCallType kernel = Function(library, name);
  Mark(kMarkClear, 0);
  Mark(kMarkObserve, 1);
  for (int i = 0; i < count; ++i) {
    if (is_fresh[i]) ParallelLaunch(ReadShare, &arrays[i], 0);
  }
  Mark(kMarkObserve, 2);
  Mark(kMarkStep, 0);
  Call(kernel, arguments, count);
  Mark(kMarkStep, kMarkNoStep);
  Mark(kMarkObserve, 0);
}

int main(int count, char** words) {
  if (count < 4) {
    fputs("usage: driver THREADS WARM LIBRARY [FUNCTION TYPE:SHAPE ...]\n", stderr);
    return 2;
  }
  threads = atoi(words[1]);
  void* library = Load(words[3]);
  if (count == 4) RunNetwork(library, atoi(words[2]));
  else RunKernel(library, words[4], count - 5, words + 5);
  return 0;
}
