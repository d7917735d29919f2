// Runs a library that nnc compiled, with the TVM runtime alone: on the board, or here under emulation.
//
//   runner MODULE.so OUTPUT_FOLDER REPEATS INPUT.npy...
//
// Inputs are in the model's order. Outputs are written to OUTPUT_FOLDER/0.npy, 1.npy, ...; the seconds of every
// repetition go to standard output, one per line.
//
// In C, because TVM's C++ interface lets exceptions cross into the caller, which must then have been built with the
// runtime's own C++ library. The C interface hands errors over as objects.

#define _POSIX_C_SOURCE 200809L

#include <dlpack/dlpack.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <tvm/ffi/c_api.h>

enum { kMaxRank = 16, kMaxInputs = 64, kHeader = 4096 };
enum { kPooledAllocator = 2 };  // AllocatorType of tvm/runtime/memory/memory_manager.h

static _Noreturn void Fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fputs("error: ", stderr);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  exit(1);
}

// --- Values of TVM's C interface -------------------------------------------------------------------------------------

static TVMFFIAny Text(const char* value) { return (TVMFFIAny){.type_index = kTVMFFIRawStr, .v_c_str = value}; }
static TVMFFIAny Number(int64_t value) { return (TVMFFIAny){.type_index = kTVMFFIInt, .v_int64 = value}; }
static TVMFFIAny Object(TVMFFIObjectHandle value, int32_t type) {
  return (TVMFFIAny){.type_index = type, .v_obj = (TVMFFIObject*)value};
}

// What follows an object's header; the C++ part of the header names each kind.
static void* Cell(TVMFFIObjectHandle object) { return (char*)object + sizeof(TVMFFIObject); }

// Stops with the first line of TVM's message when `status` is an error.
static void Check(int status) {
  if (status == 0) return;
  TVMFFIObjectHandle error = NULL;
  TVMFFIErrorMoveFromRaised(&error);
  TVMFFIByteArray message = ((TVMFFIErrorCell*)Cell(error))->message;
  const char* end = memchr(message.data, '\n', message.size);
  Fail("%.*s", (int)(end ? (size_t)(end - message.data) : message.size), message.data);
}

static TVMFFIAny Call(TVMFFIObjectHandle function, TVMFFIAny* arguments, int count) {
  TVMFFIAny result = {.type_index = kTVMFFINone};
  Check(TVMFFIFunctionCall(function, arguments, count, &result));
  return result;
}

static TVMFFIObjectHandle Global(const char* name) {
  TVMFFIByteArray bytes = {name, strlen(name)};
  TVMFFIObjectHandle function = NULL;
  Check(TVMFFIFunctionGetGlobal(&bytes, &function));
  if (!function) Fail("the TVM runtime has no function %s", name);
  return function;
}

// NULL where the library has none of that name.
static TVMFFIObjectHandle Find(TVMFFIAny module, const char* name) {
  TVMFFIAny query_imports = {.type_index = kTVMFFIBool, .v_int64 = 1};
  TVMFFIAny arguments[] = {module, Text(name), query_imports};
  TVMFFIAny function = Call(Global("ffi.ModuleGetFunction"), arguments, 3);
  return function.type_index == kTVMFFIFunction ? function.v_obj : NULL;
}

static TVMFFIObjectHandle Function(TVMFFIAny module, const char* name) {
  TVMFFIObjectHandle function = Find(module, name);
  if (!function) Fail("the library has no function %s", name);
  return function;
}

// --- .npy files ------------------------------------------------------------------------------------------------------

static size_t Bytes(const DLTensor* tensor) {
  size_t count = 1;
  for (int axis = 0; axis < tensor->ndim; ++axis) count *= (size_t)tensor->shape[axis];
  return count * ((tensor->dtype.bits * tensor->dtype.lanes + 7) / 8);
}

// "<f4" -> float32, as numpy's array interface writes types.
static DLDataType TypeOf(const char* code) {
  static const char* kinds = "iufb";
  static const uint8_t codes[] = {kDLInt, kDLUInt, kDLFloat, kDLBool};
  const char* kind = strchr(kinds, code[1]);
  if (!kind || code[0] == '>') Fail("inputs of type %s are not supported", code);
  return (DLDataType){codes[kind - kinds], (uint8_t)(8 * atoi(code + 2)), 1};
}

static const char* After(const char* header, const char* key, const char* path) {
  const char* found = strstr(header, key);
  if (!found) Fail("%s: no %s in its header", path, key);
  return found + strlen(key);
}

static void Keep(DLManagedTensor* tensor) { (void)tensor; }  // inputs live as long as the program

static TVMFFIAny ReadNpy(const char* path) {
  FILE* file = fopen(path, "rb");
  unsigned char start[10];  // "\x93NUMPY", version (2 bytes), length of the header (2 bytes in version 1)
  if (!file || fread(start, 1, sizeof start, file) != sizeof start || memcmp(start, "\x93NUMPY\x01", 7)) {
    Fail("%s is not an .npy file of version 1", path);
  }
  size_t length = start[8] + 256 * start[9];
  char header[kHeader + 1] = {0}, code[8] = {0};
  if (length > kHeader || fread(header, 1, length, file) != length) Fail("%s is truncated", path);
  if (strncmp(After(header, "'fortran_order': ", path), "False", 5)) Fail("%s is not in C order", path);
  sscanf(After(header, "'descr': '", path), "%7[^']", code);

  DLManagedTensor* managed = calloc(1, sizeof *managed);
  DLTensor* tensor = &managed->dl_tensor;
  managed->deleter = Keep;
  tensor->device = (DLDevice){kDLCPU, 0};
  tensor->dtype = TypeOf(code);
  tensor->shape = calloc(kMaxRank, sizeof *tensor->shape);
  const char* at = After(header, "'shape': (", path);
  for (char* end; tensor->ndim < kMaxRank; at = end + strspn(end, ", ")) {
    int64_t size = strtoll(at, &end, 10);
    if (end == at) break;
    tensor->shape[tensor->ndim++] = size;
  }
  size_t bytes = Bytes(tensor);
  tensor->data = aligned_alloc(64, (bytes + 64) / 64 * 64);  // 64: what TVM's kernels assume
  if (!tensor->data || fread(tensor->data, 1, bytes, file) != bytes) Fail("%s is truncated", path);
  fclose(file);
  TVMFFIObjectHandle handle = NULL;
  Check(TVMFFITensorFromDLPack(managed, 64, 1, &handle));
  return Object(handle, kTVMFFITensor);
}

static void WriteNpy(const char* path, const DLTensor* tensor) {
  char shape[kMaxRank * 24] = "", header[kHeader];
  for (int axis = 0; axis < tensor->ndim; ++axis) {
    sprintf(shape + strlen(shape), "%lld,", (long long)tensor->shape[axis]);
  }
  char kind = tensor->dtype.code == kDLBool ? 'b' : tensor->dtype.code <= kDLFloat ? "iuf"[tensor->dtype.code] : 'V';
  int length = sprintf(header, "{'descr': '%c%c%d', 'fortran_order': False, 'shape': (%s)}",
                       tensor->dtype.bits == 8 ? '|' : '<', kind, (tensor->dtype.bits + 7) / 8, shape);
  int padded = (10 + length + 1 + 63) / 64 * 64 - 10;  // data starts at a multiple of 64
  FILE* file = fopen(path, "wb");
  if (!file) Fail("%s can't be written", path);
  fwrite("\x93NUMPY\x01\x00", 1, 8, file);
  fputc(padded & 255, file);
  fputc(padded >> 8, file);
  fprintf(file, "%-*s\n", padded - 1, header);
  size_t bytes = Bytes(tensor), written = fwrite(tensor->data, 1, bytes, file);
  if (fclose(file) || written != bytes) Fail("%s can't be written", path);
}

// --- The Relax virtual machine ---------------------------------------------------------------------------------------

static TVMFFIAny LoadMachine(const char* path) {
  TVMFFIAny name = Text(path);
  TVMFFIAny library = Call(Global("ffi.ModuleLoadFromFile"), &name, 1);
  TVMFFIAny machine = Call(Function(library, "vm_load_executable"), NULL, 0);
  TVMFFIAny device[] = {Number(kDLCPU), Number(0), Number(kPooledAllocator)};
  Call(Function(machine, "vm_initialization"), device, 3);
  TVMFFIObjectHandle load_weights = Find(library, "load_weights");  // decodes packed ones
  if (load_weights) Call(load_weights, NULL, 0);
  return machine;
}

static void SetInputs(TVMFFIAny machine, int count, char** paths) {
  TVMFFIAny arguments[kMaxInputs + 1] = {Text("main")};
  int64_t wanted = Call(Function(machine, "get_function_arity"), arguments, 1).v_int64;
  if (wanted != count || count > kMaxInputs) Fail("the model has %lld inputs, not %d", (long long)wanted, count);
  for (int index = 0; index < count; ++index) arguments[index + 1] = ReadNpy(paths[index]);
  Call(Function(machine, "set_input"), arguments, count + 1);
}

static double Run(TVMFFIAny machine) {
  TVMFFIAny name = Text("main");
  TVMFFIObjectHandle invoke = Function(machine, "invoke_stateful");
  struct timespec start, end;
  clock_gettime(CLOCK_MONOTONIC, &start);
  Call(invoke, &name, 1);
  clock_gettime(CLOCK_MONOTONIC, &end);
  return (double)(end.tv_sec - start.tv_sec) + (double)(end.tv_nsec - start.tv_nsec) * 1e-9;
}

static void WriteOutputs(TVMFFIAny machine, const char* folder) {
  TVMFFIAny arguments[] = {Text("main"), Number(0)};
  int64_t arity = Call(Function(machine, "get_output_arity"), arguments, 1).v_int64;
  int64_t count = arity < 0 ? 1 : arity;  // -1: one tensor, not a tuple
  for (int64_t index = 0; index < count; ++index) {
    char path[4096];
    arguments[1] = Number(index);
    TVMFFIAny output = Call(Function(machine, "get_output"), arguments, arity < 0 ? 1 : 2);
    snprintf(path, sizeof path, "%s/%lld.npy", folder, (long long)index);
    WriteNpy(path, Cell(output.v_obj));
  }
}

int main(int count, char** arguments) {
  if (count < 4) {
    fputs("usage: runner MODULE.so OUTPUT_FOLDER REPEATS INPUT.npy...\n", stderr);
    return 2;
  }
  TVMFFIAny machine = LoadMachine(arguments[1]);
  SetInputs(machine, count - 4, arguments + 4);
  int repeats = atoi(arguments[3]);
  do printf("%.9f\n", Run(machine));
  while (--repeats > 0);
  WriteOutputs(machine, arguments[2]);
  return 0;
}
