// Runs the network in module.so, which lies beside this program, on .npy files. `run --help` says how.
//
//   cc -O2 -pthread -rdynamic run.c npy.c outputs.c runtime.c -ldl -lm -o run

#define _POSIX_C_SOURCE 200809L

#include <libgen.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "npy.h"
#include "outputs.h"
#include "runtime.h"

enum { kMaxArrays = 256 };

static const char kUsage[] =
    "usage: run [options] INPUT.npy...   the inputs in the order of the model\n"
    "       run [options] --check        the sample inputs, compared with the outputs that are expected\n"
    "\n"
    "  -o FILE.npy     write the output; several are FILE0.npy, FILE1.npy and so on\n"
    "  --threads N     cores that share the work, else as many as the network was compiled for\n"
    "  --repeat N      time N inferences, after one that does not count\n"
    "  --tolerance X   of --check: how far a number may be off, as a share of the largest; else 0.001\n"
    "  --module FILE   another library than the module.so beside this program\n";

typedef struct {
  const char* module;
  const char* output;
  char** inputs;
  int input_count, threads, repeats, is_check;
  double tolerance;
} Options;

// --- The command line ------------------------------------------------------------------------------------------------

static _Noreturn void Usage(const char* message, const char* what) {
  fprintf(stderr, "run: error: %s%s\n\n%s", message, what, kUsage);
  exit(2);
}

static int Positive(const char* option, const char* text) {
  char* end;
  long value = strtol(text, &end, 10);
  if (end == text || *end || value < 1 || value > INT_MAX) Usage("not a positive number: ", option);
  return (int)value;
}

static double Share(const char* text) {
  char* end;
  double value = strtod(text, &end);
  if (end == text || *end || !(value >= 0)) Usage("not a share: --tolerance ", text);
  return value;
}

static Options Parse(int count, char** words) {
  Options options = {.inputs = calloc((size_t)count, sizeof(char*)), .tolerance = 1e-3};
  for (int i = 1; i < count; ++i) {
    const char* word = words[i];
    if (!strcmp(word, "-h") || !strcmp(word, "--help")) {
      fputs(kUsage, stdout);
      exit(0);
    }
    if (word[0] != '-') {
      options.inputs[options.input_count++] = words[i];
    } else if (!strcmp(word, "--check")) {
      options.is_check = 1;
    } else {
      static const char* known[] = {"-o", "--module", "--threads", "--repeat", "--tolerance"};
      size_t which = 0;
      while (which < sizeof known / sizeof *known && strcmp(word, known[which])) ++which;
      if (which == sizeof known / sizeof *known) Usage("no such option: ", word);
      if (++i == count) Usage("a value is missing: ", word);
      if (which == 0) options.output = words[i];
      if (which == 1) options.module = words[i];
      if (which == 2) options.threads = Positive(word, words[i]);
      if (which == 3) options.repeats = Positive(word, words[i]);
      if (which == 4) options.tolerance = Share(words[i]);
    }
  }
  if (options.is_check == (options.input_count > 0)) Usage("give the inputs, or --check", "");
  return options;
}

// --- Files beside the program ----------------------------------------------------------------------------------------

static char folder[PATH_MAX];

static void FindFolder(const char* program) {
  char path[PATH_MAX] = "";
  if (readlink("/proc/self/exe", path, sizeof path - 1) <= 0) snprintf(path, sizeof path, "%s", program);
  snprintf(folder, sizeof folder, "%s", dirname(path));
}

static const char* Beside(const char* name) {
  static char path[2 * PATH_MAX];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  return path;
}

// ("output.npy", 1) of several -> "output1.npy"; of one, "output.npy".
static const char* Numbered(const char* path, int index, int count) {
  static char numbered[2 * PATH_MAX];
  const char *dot = strrchr(path, '.'), *slash = strrchr(path, '/');
  int stem = (int)(dot && (!slash || dot > slash) ? dot - path : (long)strlen(path));
  if (count == 1) return path;
  snprintf(numbered, sizeof numbered, "%.*s%d%s", stem, path, index, path + stem);
  return numbered;
}

// --- Running ---------------------------------------------------------------------------------------------------------

static double Milliseconds(const NncNetwork* network, void** arrays) {
  struct timespec start, end;
  clock_gettime(CLOCK_MONOTONIC, &start);
  int status = network->run(arrays);
  clock_gettime(CLOCK_MONOTONIC, &end);
  if (status) Fail("%s", RuntimeError());
  return (double)(end.tv_sec - start.tv_sec) * 1e3 + (double)(end.tv_nsec - start.tv_nsec) * 1e-6;
}

static int Ascending(const void* a, const void* b) {
  double difference = *(const double*)a - *(const double*)b;
  return (difference > 0) - (difference < 0);
}

static void Time(const NncNetwork* network, void** arrays, int repeats) {
  double* times = calloc((size_t)repeats, sizeof *times);
  if (!times) Fail("there is not enough memory for %d times", repeats);
  for (int i = 0; i < repeats; ++i) times[i] = Milliseconds(network, arrays);
  qsort(times, (size_t)repeats, sizeof *times, Ascending);
  double median = (times[(repeats - 1) / 2] + times[repeats / 2]) / 2;
  int threads = RuntimeThreads();
  printf("median %.3f ms, lowest %.3f ms, highest %.3f ms of %d on %d thread%s\n", median, times[0], times[repeats - 1],
         repeats, threads, threads == 1 ? "" : "s");
  free(times);
}

static void ReadInputs(const NncNetwork* network, const Options* options, void** arrays) {
  int count = network->input_count;
  if (!options->is_check && options->input_count != count) {
    fprintf(stderr, "run: error: the model reads %d input%s, not %d:", count, count == 1 ? "" : "s", options->input_count);
    for (int i = 0; i < count; ++i) fprintf(stderr, "%s %s", i ? "," : "", Described(&network->tensors[i]));
    fputc('\n', stderr);
    exit(1);
  }
  for (int i = 0; i < count; ++i) {
    const char* path = options->is_check ? Beside(Numbered("input.npy", i, count)) : options->inputs[i];
    arrays[i] = NpyRead(path, &network->tensors[i]);
  }
}

// --- What comes out --------------------------------------------------------------------------------------------------

static void MakeOutputs(const NncNetwork* network, void** arrays) {
  for (int i = network->input_count; i < network->input_count + network->output_count; ++i) {
    arrays[i] = Allocate(&network->tensors[i]);
  }
}

static void WriteOutputs(const NncNetwork* network, void** arrays, const char* path) {
  int inputs = network->input_count, count = network->output_count;
  for (int i = 0; i < count; ++i) NpyWrite(Numbered(path, i, count), &network->tensors[inputs + i], arrays[inputs + i]);
}

static int ShowOutputs(const NncNetwork* network, void** arrays) {
  int inputs = network->input_count;
  for (int i = inputs; i < inputs + network->output_count; ++i) Show(&network->tensors[i], arrays[i]);
  return 1;
}

static int Check(const NncNetwork* network, void** arrays, double tolerance) {
  const NncTensor* outputs = network->tensors + network->input_count;
  int agree = 1;
  for (int i = 0; i < network->output_count; ++i) {
    const char* path = Beside(Numbered("expected.npy", i, network->output_count));
    void* expected = NpyRead(path, &outputs[i]);
    agree &= Agrees(&outputs[i], arrays[network->input_count + i], expected, tolerance);
    free(expected);
  }
  return agree;
}

static void OnIllegalInstruction(int number) {
  static const char message[] =
      "run: error: this processor lacks instructions that the network was compiled for, see README.md\n";
  ssize_t written = write(STDERR_FILENO, message, sizeof message - 1);
  _exit(written < 0 ? 2 : 1);
}

int main(int count, char** words) {
  Options options = Parse(count, words);
  signal(SIGILL, OnIllegalInstruction);
  FindFolder(words[0]);
  const NncNetwork* network = RuntimeLoad(options.module ? options.module : Beside("module.so"), options.threads);
  if (!network) Fail("%s", RuntimeError());
  void* arrays[kMaxArrays];
  if (network->input_count + network->output_count > kMaxArrays) Fail("the model has too many inputs and outputs");
  ReadInputs(network, &options, arrays);
  MakeOutputs(network, arrays);
  Milliseconds(network, arrays);
  if (options.output) WriteOutputs(network, arrays, options.output);
  int agrees = options.is_check ? Check(network, arrays, options.tolerance) : ShowOutputs(network, arrays);
  if (options.repeats) Time(network, arrays, options.repeats);
  return agrees ? 0 : 1;
}
