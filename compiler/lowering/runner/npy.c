#define _POSIX_C_SOURCE 200809L

#include "npy.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { kMaxRank = 16, kMaxHeader = 1 << 16, kMaxText = 512 };

_Noreturn void Fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fflush(stdout);
  fputs("run: error: ", stderr);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  exit(1);
}

// --- Tensors ---------------------------------------------------------------------------------------------------------

size_t Count(const NncTensor* tensor) {
  size_t count = 1;
  for (int axis = 0; axis < tensor->rank; ++axis) count *= (size_t)tensor->shape[axis];
  return count;
}

size_t Bytes(const NncTensor* tensor) { return Count(tensor) * (size_t)atoi(tensor->type + 2); }

void* Allocate(const NncTensor* tensor) {
  void* memory = aligned_alloc(128, Bytes(tensor) / 128 * 128 + 256);
  if (!memory) Fail("there is not enough memory for %s", Described(tensor));
  return memory;
}

// "<f4" -> "float32"
static const char* TypeName(const char* type) {
  static const char* names[][2] = {
      {"<f8", "float64"}, {"<f4", "float32"}, {"<f2", "float16"}, {"|b1", "bool"},   {"|i1", "int8"},   {"<i2", "int16"},
      {"<i4", "int32"},   {"<i8", "int64"},   {"|u1", "uint8"},   {"<u2", "uint16"}, {"<u4", "uint32"}, {"<u8", "uint64"},
  };
  for (size_t i = 0; i < sizeof names / sizeof *names; ++i) {
    if (!strcmp(names[i][0], type)) return names[i][1];
  }
  return type;
}

// "float32 [1, 3, 224, 224]"
static void Describe(char* text, const char* type, int rank, const int64_t* shape) {
  int end = snprintf(text, kMaxText, "%s [", TypeName(type));
  for (int axis = 0; axis < rank && end < kMaxText - 32; ++axis) {
    end += snprintf(text + end, kMaxText - end, "%s%lld", axis ? ", " : "", (long long)shape[axis]);
  }
  snprintf(text + end, kMaxText - end, "]");
}

const char* Described(const NncTensor* tensor) {
  static char text[2 * kMaxText];
  char type[kMaxText];
  Describe(type, tensor->type, tensor->rank, tensor->shape);
  snprintf(text, sizeof text, "'%.400s' %s", tensor->name, type);
  return text;
}

// --- Reading ---------------------------------------------------------------------------------------------------------

typedef struct {
  char type[16];
  int rank;
  int64_t shape[kMaxRank];
} Header;

static FILE* Open(const char* path) {
  struct stat status;
  FILE* file = fopen(path, "rb");
  if (!file) Fail("%s: %s", path, strerror(errno));
  if (!fstat(fileno(file), &status) && S_ISDIR(status.st_mode)) Fail("%s: a folder, not an .npy file", path);
  return file;
}

// The text of the header: a dict of Python.
static char* ReadText(const char* path, FILE* file) {
  unsigned char start[12];  // "\x93NUMPY", version in 2 bytes, length in 2 or, from version 2 on, 4
  if (fread(start, 1, 10, file) != 10 || memcmp(start, "\x93NUMPY", 6)) {
    Fail("%s: not an .npy file, write it with numpy.save", path);
  }
  size_t length = start[8] + ((size_t)start[9] << 8);
  if (start[6] > 1) {
    if (fread(start + 10, 1, 2, file) != 2) Fail("%s: the file is truncated", path);
    length += ((size_t)start[10] << 16) + ((size_t)start[11] << 24);
  }
  char* text = length < kMaxHeader ? calloc(1, length + 1) : NULL;
  if (!text) Fail("%s: its header is damaged", path);
  if (fread(text, 1, length, file) != length) Fail("%s: the file is truncated", path);
  return text;
}

static const char* After(const char* text, const char* key, const char* path) {
  const char* found = strstr(text, key);
  if (!found) Fail("%s: its header is damaged, there is no %s", path, key);
  return found + strlen(key) + strspn(found + strlen(key), ": ");
}

static Header Parse(const char* path, const char* text) {
  Header header = {.rank = 0};
  const char* type = After(text, "'descr'", path);
  if (sscanf(type, "'%15[^']'", header.type) != 1) Fail("%s: holds records, not numbers", path);
  if (!strncmp(After(text, "'fortran_order'", path), "True", 4)) {
    Fail("%s: in Fortran order, save it with numpy.ascontiguousarray", path);
  }
  const char* at = After(text, "'shape'", path);
  if (*at++ != '(') Fail("%s: its header is damaged, there is no shape", path);
  for (char* end; header.rank < kMaxRank; at = end + strspn(end, ", L")) {
    int64_t size = strtoll(at, &end, 10);
    if (end == at) break;
    header.shape[header.rank++] = size;
  }
  return header;
}

static int Fits(const Header* header, const NncTensor* tensor) {
  return !strcmp(header->type, tensor->type) && header->rank == tensor->rank &&
         !memcmp(header->shape, tensor->shape, sizeof *header->shape * (size_t)tensor->rank);
}

void* NpyRead(const char* path, const NncTensor* tensor) {
  FILE* file = Open(path);
  char* text = ReadText(path, file);
  Header header = Parse(path, text);
  free(text);
  if (!Fits(&header, tensor)) {
    char found[kMaxText];
    Describe(found, header.type, header.rank, header.shape);
    Fail("%s: %s, but the model has %s", path, found, Described(tensor));
  }
  void* values = Allocate(tensor);
  if (fread(values, 1, Bytes(tensor), file) != Bytes(tensor)) Fail("%s: the file is truncated", path);
  fclose(file);
  return values;
}

// --- Writing ---------------------------------------------------------------------------------------------------------

void NpyWrite(const char* path, const NncTensor* tensor, const void* values) {
  char shape[kMaxText] = "", text[2 * kMaxText];
  for (int axis = 0; axis < tensor->rank && axis < kMaxRank; ++axis) {
    sprintf(shape + strlen(shape), "%lld, ", (long long)tensor->shape[axis]);
  }
  int length = sprintf(text, "{'descr': '%s', 'fortran_order': False, 'shape': (%s), }", tensor->type, shape);
  int padded = (10 + length + 1 + 63) / 64 * 64 - 10;  // the values start at a multiple of 64
  FILE* file = fopen(path, "wb");
  if (!file) Fail("%s: %s", path, strerror(errno));
  fwrite("\x93NUMPY\x01\x00", 1, 8, file);
  fputc(padded & 255, file);
  fputc(padded >> 8, file);
  fprintf(file, "%-*s\n", padded - 1, text);
  size_t written = fwrite(values, 1, Bytes(tensor), file);
  if (fclose(file) || written != Bytes(tensor)) {
    remove(path);
    Fail("%s: can't be written", path);
  }
}
