// A plugin of QEMU that counts the blocks a program executes, by step of a network and by worker, and simulates caches.
//
//   qemu-ARCHITECTURE -plugin plugin.so,out=FILE[,caches=TEXT] driver ...
//
// The driver says through marks (marks.h) which step and which worker it stands for. FILE has a line per block that was
// executed, "B ADDRESS CODE CODE ...", its instructions byte by byte in hexadecimal; the first has number 0. A line
// "S STEP WORKER A A A A A A A A NUMBER:COUNT ..." says how often blocks were executed between two marks, after the eight
// numbers of Traffic in caches.h. "E" ends the file.

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "caches.h"
#include "marks.h"
#include "plugin_api.h"

EXPORT int qemu_plugin_version = 1;

typedef struct Block {
  uint64_t count;  // since the last mark; translated code adds to it
  uint64_t address;
  size_t size;  // of its text
  int number;   // in the file; -1 before it is there
  struct Block *next, *next_of_all;
  char text[];  // " CODE CODE ...", as in the file
} Block;

enum { kBuckets = 1 << 16, kLongest = 15 };  // an instruction has so many bytes at most

static Block *buckets[kBuckets], *blocks;
static FILE* out;
static int written, is_caching;
static uint64_t observing, step = kMarkNoStep, worker;
static int core;  // whose caches are used

// --- Counting --------------------------------------------------------------------------------------------------------

static void WriteBlock(Block* block) {
  block->number = written++;
  fprintf(out, "B %" PRIx64 "%s\n", block->address, block->text);
}

// Write down what was counted since the last mark, unless nobody wants to know, and start from zero.
static void Flush(void) {
  bool counts = observing == 2 && step != kMarkNoStep;
  Traffic* traffic = CachesTraffic(core);
  for (Block* block = counts ? blocks : NULL; block; block = block->next_of_all) {
    if (block->count && block->number < 0) WriteBlock(block);
  }
  if (counts) {
    fprintf(out, "S %" PRIu64 " %" PRIu64, step, worker);
    const uint64_t* numbers = (const uint64_t*)traffic;
    for (size_t i = 0; i < sizeof *traffic / sizeof *numbers; ++i) fprintf(out, " %" PRIu64, numbers[i]);
  }
  for (Block* block = blocks; block; block = block->next_of_all) {
    if (counts && block->count) fprintf(out, " %d:%" PRIu64, block->number, block->count);
    block->count = 0;
  }
  if (counts) fputc('\n', out);
  *traffic = (Traffic){0};
}

static void OnSyscall(qemu_plugin_id_t id, unsigned vcpu, int64_t number, uint64_t mark, uint64_t value, uint64_t a3,
                      uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
  if (number != kMarkCall) return;
  Flush();
  if (mark == kMarkClear && is_caching) CachesClear();
  if (mark == kMarkObserve) observing = value;
  if (mark == kMarkStep) step = value;
  if (mark == kMarkWorker) worker = value, core = value && value <= kMaxCores ? (int)value - 1 : 0;
}

static void OnMemory(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t address, void* data) {
  if (observing) CachesAccess(core, address, 1u << qemu_plugin_mem_size_shift(info), qemu_plugin_mem_is_store(info));
}

// --- Translation -----------------------------------------------------------------------------------------------------

// The block with this code at this address: QEMU may translate it several times.
static Block* Known(uint64_t address, const char* text, size_t size) {
  Block** bucket = &buckets[(address >> 2) % kBuckets];
  for (Block* block = *bucket; block; block = block->next) {
    if (block->address == address && block->size == size && !memcmp(block->text, text, size)) return block;
  }
  Block* block = calloc(1, sizeof *block + size + 1);
  *block = (Block){.address = address, .size = size, .number = -1, .next = *bucket, .next_of_all = blocks};
  memcpy(block->text, text, size);
  return blocks = *bucket = block;
}

static void OnTranslate(qemu_plugin_id_t id, struct qemu_plugin_tb* translated) {
  size_t count = qemu_plugin_tb_n_insns(translated);
  char *text = calloc(count * (1 + 2 * kLongest) + 1, 1), *end = text;
  for (size_t i = 0; i < count; ++i) {
    struct qemu_plugin_insn* instruction = qemu_plugin_tb_get_insn(translated, i);
    const uint8_t* code = qemu_plugin_insn_data(instruction);
    *end++ = ' ';
    for (size_t at = 0; at < qemu_plugin_insn_size(instruction); ++at) end += sprintf(end, "%02x", code[at]);
    if (is_caching) {
      qemu_plugin_register_vcpu_mem_cb(instruction, OnMemory, QEMU_PLUGIN_CB_NO_REGS, QEMU_PLUGIN_MEM_RW, NULL);
    }
  }
  Block* block = Known(qemu_plugin_tb_vaddr(translated), text, (size_t)(end - text));
  free(text);
  qemu_plugin_register_vcpu_tb_exec_inline(translated, QEMU_PLUGIN_INLINE_ADD_U64, &block->count, 1);
}

static void OnExit(qemu_plugin_id_t id, void* data) {
  fputs("E\n", out);
  fclose(out);
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t* info, int count, char** options) {
  for (int i = 0; i < count; ++i) {
    if (!strncmp(options[i], "out=", 4)) out = fopen(options[i] + 4, "w");
    if (!strncmp(options[i], "caches=", 7)) is_caching = CachesOpen(options[i] + 7) ? 1 : -1;
  }
  if (!out || is_caching < 0) return -1;
  if (is_caching) CachesClear();
  qemu_plugin_register_vcpu_tb_trans_cb(id, OnTranslate);
  qemu_plugin_register_vcpu_syscall_cb(id, OnSyscall);
  qemu_plugin_register_atexit_cb(id, OnExit, NULL);
  return 0;
}
