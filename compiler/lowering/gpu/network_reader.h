/* Reads network.json: its tokens in the order in which nnc writes them, punctuation left out. */
#ifndef NNC_NETWORK_READER_H
#define NNC_NETWORK_READER_H

#include <ctype.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { WORKSPACE, WEIGHTS, INPUTS, MEMORIES = 64, MOST_ARGUMENTS = 64 };

typedef struct {
  int memory; /* WORKSPACE, WEIGHTS, INPUTS + i, INPUTS + inputs + i for output i */
  uint64_t offset, bytes;
} Argument;

typedef struct {
  char kernel[256];
  void* handle;
  unsigned grid[3], group[3];
  int is_copy;
  uint64_t copy[4]; /* rows, bytes, source stride, result stride */
  int argument_count;
  Argument arguments[MOST_ARGUMENTS];
} Step;

typedef struct {
  int input_count, output_count, memory_count, step_count;
  uint64_t bytes[MEMORIES];
  Step* steps;
} Network;

typedef struct {
  char* data; /* with a zero behind it */
  uint64_t size;
} Bytes;

typedef struct {
  const char* folder;
  int repeats;
  char** files;
  int file_count;
} Command;

static void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  fputc('\n', stderr);
  exit(1);
}

static void* allocate(uint64_t bytes) {
  void* memory = calloc(1, bytes + 1);
  if (memory == NULL) fail("out of memory");
  return memory;
}

static double milliseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1e3 + now.tv_nsec / 1e6;
}

static Bytes read_path(const char* path) {
  FILE* file = fopen(path, "rb");
  Bytes bytes = {NULL, 0};
  if (file == NULL) fail("%s: can't be read", path);
  fseek(file, 0, SEEK_END);
  bytes.size = (uint64_t)ftell(file);
  rewind(file);
  bytes.data = (char*)allocate(bytes.size);
  if (fread(bytes.data, 1, bytes.size, file) != bytes.size) fail("%s: can't be read", path);
  fclose(file);
  return bytes;
}

static Bytes read_file(const char* folder, const char* name) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  return read_path(path);
}

static Bytes read_values(const char* path, uint64_t wanted) {
  Bytes values = read_path(path);
  if (values.size != wanted)
    fail("%s: %llu bytes, but the network reads %llu", path, (unsigned long long)values.size, (unsigned long long)wanted);
  return values;
}

static void write_values(const char* path, const void* values, uint64_t bytes) {
  FILE* file = fopen(path, "wb");
  if (file == NULL || fwrite(values, 1, bytes, file) != bytes || fclose(file)) fail("%s: can't be written", path);
}

/* -- tokens: words without their quotes, and numbers */

static char* cursor;

static char* next_token(void) {
  static char token[4096];
  size_t length = 0;
  while (*cursor && !isalnum((unsigned char)*cursor) && *cursor != '"' && *cursor != '-') ++cursor;
  if (*cursor == '"') {
    for (++cursor; *cursor && *cursor != '"' && length < sizeof token - 1; ++cursor) {
      if (*cursor == '\\' && cursor[1]) ++cursor;
      token[length++] = *cursor;
    }
    if (*cursor) ++cursor;
  } else {
    while ((isalnum((unsigned char)*cursor) || *cursor == '-') && length < sizeof token - 1) token[length++] = *cursor++;
  }
  token[length] = 0;
  return token;
}

static uint64_t next_number(void) { return strtoull(next_token(), NULL, 10); }

/* The character that ends or continues a list. */
static int next_mark(void) {
  while (*cursor && !strchr("[]{},", *cursor)) ++cursor;
  return *cursor;
}

static void skip_to(const char* key) {
  char quoted[64];
  snprintf(quoted, sizeof quoted, "\"%s\":", key);
  char* found = strstr(cursor, quoted);
  if (found == NULL) fail("network.json: '%s' is missing", key);
  cursor = found + strlen(quoted);
}

/* [{"name", "dtype", "shape", "bytes"}, ...] of a line. */
static int read_tensors(const char* key, uint64_t* bytes) {
  int count = 0;
  skip_to(key);
  char* end = strchr(cursor, '\n');
  while (end && strstr(cursor, "\"bytes\":") && strstr(cursor, "\"bytes\":") < end) {
    skip_to("bytes");
    if (count == (MEMORIES - INPUTS) / 2) fail("network.json: too many %s", key);
    bytes[count++] = next_number();
  }
  return count;
}

static int memory_of(const char* kind, int index, const Network* network) {
  if (!strcmp(kind, "workspace")) return WORKSPACE;
  if (!strcmp(kind, "weights")) return WEIGHTS;
  return INPUTS + (strcmp(kind, "output") ? 0 : network->input_count) + index;
}

static void read_arguments(Step* step, const Network* network) {
  skip_to("arguments");
  next_mark();
  ++cursor; /* [ */
  while (next_mark() != ']') {
    if (*cursor == ',') {
      ++cursor;
      continue;
    }
    if (step->argument_count == MOST_ARGUMENTS) fail("network.json: too many arguments");
    Argument* argument = &step->arguments[step->argument_count++];
    char kind[16];
    snprintf(kind, sizeof kind, "%s", next_token());
    argument->memory = memory_of(kind, (int)next_number(), network);
    argument->offset = next_number();
    argument->bytes = next_number();
    next_mark();
    ++cursor; /* ] */
  }
}

static void read_step(Step* step, const Network* network) {
  step->is_copy = !strcmp(next_token(), "copy");
  if (step->is_copy) {
    for (int i = 0; i < 4; ++i) step->copy[i] = next_number();
  } else {
    snprintf(step->kernel, sizeof step->kernel, "%s", next_token());
    skip_to("grid");
    for (int i = 0; i < 3; ++i) step->grid[i] = (unsigned)next_number();
    skip_to("group");
    for (int i = 0; i < 3; ++i) step->group[i] = (unsigned)next_number();
  }
  read_arguments(step, network);
}

static Network* read_network(const char* folder) {
  Network* network = (Network*)allocate(sizeof(Network));
  uint64_t outputs[MEMORIES];
  cursor = read_file(folder, "network.json").data;
  network->input_count = read_tensors("inputs", network->bytes + INPUTS);
  network->output_count = read_tensors("outputs", outputs);
  memcpy(network->bytes + INPUTS + network->input_count, outputs, sizeof(uint64_t) * (size_t)network->output_count);
  network->memory_count = INPUTS + network->input_count + network->output_count;
  skip_to("weights");
  network->bytes[WEIGHTS] = next_number();
  skip_to("workspace");
  network->bytes[WORKSPACE] = next_number();
  skip_to("steps");
  for (char* line = strchr(cursor, '\n'); line && line[1] == '{'; line = strchr(line + 1, '\n')) ++network->step_count;
  network->steps = (Step*)allocate(sizeof(Step) * (size_t)network->step_count);
  for (int i = 0; i < network->step_count; ++i) read_step(&network->steps[i], network);
  return network;
}

/* FOLDER [REPEATS] INPUT... OUTPUT... */
static Command parse(int argc, char** argv) {
  Command command = {argc > 1 ? argv[1] : NULL, 1, argv + 2, argc - 2};
  if (argc < 3) fail("usage: %s FOLDER [REPEATS] INPUT... OUTPUT...", argv[0]);
  if (strspn(argv[2], "0123456789") == strlen(argv[2])) {
    long repeats = strtol(argv[2], NULL, 10);
    if (repeats < 1 || repeats > 1000000000) fail("REPEATS must be a number from 1 to 1000000000, not '%s'", argv[2]);
    command.repeats = (int)repeats;
    ++command.files;
    --command.file_count;
  }
  return command;
}

static void require_files(const Command* command, const Network* network) {
  if (command->file_count != network->input_count + network->output_count)
    fail("%d files are named, but the network has %d inputs and %d outputs", command->file_count,
         network->input_count, network->output_count);
}

#endif
