// The data caches of a processor: private level 1, level 2 of one or several cores, one level 3 for all.

#ifndef CACHES_H
#define CACHES_H

#include <stdbool.h>
#include <stdint.h>

enum { kMaxCores = 64, kLineShift = 6 };

// Lines that a core got from each level below its first, those that follow lines it read before apart from the others:
// what a prefetcher sees coming.
typedef struct {
  uint64_t accesses;
  uint64_t l2_streamed, l2_alone, l3_streamed, l3_alone, memory_streamed, memory_alone;
  uint64_t written_back;  // lines to memory
} Traffic;

// "SETSxWAYS:SETSxWAYS:FIRST" of every core, separated by "/": level 1, level 2, and the first core that shares this
// level 2; then "/SETSxWAYS" of level 3, 0x0 where there is none. False where the text says something else.
bool CachesOpen(const char* text);
void CachesClear(void);
void CachesAccess(int core, uint64_t address, unsigned bytes, bool is_store);
Traffic* CachesTraffic(int core);

#endif
