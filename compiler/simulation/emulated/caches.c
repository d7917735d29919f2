// Caches of lines of 64 bytes with least-recently-used replacement, allocated on writes, written back.
//
// Level 1 is private; level 2 belongs to one core or to several; level 3 keeps what they lose and all they read. A write
// takes the line out of the caches of the other cores, as the protocols of coherence do (Hennessy and Patterson, Computer
// Architecture, chapter 5). A miss beside a line that the core missed before is one that a prefetcher sees coming: up to
// sixteen streams are followed, upwards or downwards, over at most three lines at a time.

#include "caches.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { kStreams = 16, kReach = 3 };

static const uint64_t kEmpty = ~0ull, kDirty = 1, kOwned = 2, kFlags = 3;  // a line is its number * 4 + flags

// Every set has its lines in the order of their last use, the newest first.
typedef struct {
  uint32_t sets, ways;
  uint64_t* lines;
} Cache;

typedef struct {
  Cache l1, *l2;
  uint64_t newest;  // line of the last access
  uint64_t streams[kStreams];
  unsigned oldest;  // stream to replace
  Traffic traffic;
} Core;

static Core cores[kMaxCores];
static Cache shared[kMaxCores], l3;
static int core_count;

static bool Open(Cache* cache, uint32_t sets, uint32_t ways) {
  *cache = (Cache){sets, ways, malloc(((size_t)sets * ways + 1) * sizeof(uint64_t))};
  return cache->lines;
}

static void Clear(Cache* cache) { memset(cache->lines, 0xff, (size_t)cache->sets * cache->ways * sizeof(uint64_t)); }

static uint64_t* Set(const Cache* cache, uint64_t line) { return cache->lines + line % cache->sets * cache->ways; }

// The way of the set that holds the line, or -1.
static int Find(const Cache* cache, uint64_t line) {
  const uint64_t* set = cache->sets ? Set(cache, line) : NULL;
  for (uint32_t way = 0; set && way < cache->ways; ++way) {
    if (set[way] != kEmpty && set[way] / 4 == line) return (int)way;
  }
  return -1;
}

// Make the line in `way` the newest of its set, and return it.
static uint64_t* Touch(const Cache* cache, uint64_t line, int way) {
  uint64_t *set = Set(cache, line), entry = set[way];
  memmove(set + 1, set, (size_t)way * sizeof *set);
  set[0] = entry;
  return set;
}

// Put the line in, and return the entry that had to go, or kEmpty.
static uint64_t Insert(const Cache* cache, uint64_t line, uint64_t flags) {
  if (!cache->sets) return line * 4 + flags;
  uint64_t *set = Set(cache, line), lost = set[cache->ways - 1];
  memmove(set + 1, set, (cache->ways - 1) * sizeof *set);
  set[0] = line * 4 + flags;
  return lost;
}

// Take the line out, and return its flags; 0 where it is not there.
static uint64_t Remove(const Cache* cache, uint64_t line) {
  int way = Find(cache, line);
  if (way < 0) return 0;
  uint64_t *set = Set(cache, line), flags = set[way] & kFlags;
  memmove(set + way, set + way + 1, (cache->ways - 1 - (size_t)way) * sizeof *set);
  set[cache->ways - 1] = kEmpty;
  return flags;
}

// --- What a miss causes ----------------------------------------------------------------------------------------------

// Whether the line follows one that the core missed before.
static bool IsStreamed(Core* core, uint64_t line) {
  for (int i = 0; i < kStreams; ++i) {
    int64_t step = (int64_t)(line - core->streams[i]);
    if (step && step >= -kReach && step <= kReach) {
      core->streams[i] = line;
      return true;
    }
  }
  core->streams[core->oldest] = line;
  core->oldest = (core->oldest + 1) % kStreams;
  return false;
}

static void LoseFromL3(Core* core, uint64_t entry) {
  if (entry != kEmpty && entry & kDirty) ++core->traffic.written_back;
}

// What a level above loses goes to the level below, where it may be already.
static void LoseFromL2(Core* core, uint64_t entry) {
  if (entry == kEmpty) return;
  int way = Find(&l3, entry / 4);
  if (way >= 0) *Touch(&l3, entry / 4, way) |= entry & kDirty;
  else LoseFromL3(core, Insert(&l3, entry / 4, entry & kDirty));
}

static void LoseFromL1(Core* core, uint64_t entry) {
  if (entry == kEmpty) return;
  int way = Find(core->l2, entry / 4);
  if (way >= 0) *Touch(core->l2, entry / 4, way) |= entry & kDirty;
  else LoseFromL2(core, Insert(core->l2, entry / 4, entry & kDirty));
}

// Take the line out of the other cores' caches, or only the right to write it; whether one of them had it.
static bool Snoop(Core* core, uint64_t line, bool is_store) {
  bool found = false;
  for (Core* other = cores; other < cores + core_count; ++other) {
    if (other == core) continue;
    int way = Find(&other->l1, line);
    if (way >= 0) {
      found = true;
      Set(&other->l1, line)[way] &= ~kOwned;
      if (is_store) Remove(&other->l1, line);
    }
    if (other->l2 == core->l2 || Find(other->l2, line) < 0) continue;
    found = true;
    if (is_store) Remove(other->l2, line);
  }
  return found;
}

// Count the level that the line comes from, and put it into those above.
static void Fetch(Core* core, uint64_t line, bool is_store) {
  Traffic* traffic = &core->traffic;
  bool streamed = IsStreamed(core, line), is_elsewhere = core_count > 1 && Snoop(core, line, is_store);
  int way = Find(core->l2, line);
  if (way >= 0) {
    Touch(core->l2, line, way);
    ++*(streamed ? &traffic->l2_streamed : &traffic->l2_alone);
  } else {
    int below = Find(&l3, line);
    if (below >= 0) Touch(&l3, line, below);
    if (below >= 0 || is_elsewhere) ++*(streamed ? &traffic->l3_streamed : &traffic->l3_alone);
    else ++*(streamed ? &traffic->memory_streamed : &traffic->memory_alone);
    if (below < 0 && l3.sets) LoseFromL3(core, Insert(&l3, line, 0));
    LoseFromL2(core, Insert(core->l2, line, 0));
  }
  uint64_t owned = is_store || !is_elsewhere ? kOwned : 0;
  LoseFromL1(core, Insert(&core->l1, line, owned | (is_store ? kDirty : 0)));
}

static void AccessLine(Core* core, uint64_t line, bool is_store) {
  ++core->traffic.accesses;
  int way = line == core->newest ? 0 : Find(&core->l1, line);
  if (way == 0 && (*Set(&core->l1, line) | 3) != (line * 4 | 3)) way = Find(&core->l1, line);  // another core took it
  core->newest = line;
  if (way < 0) {
    Fetch(core, line, is_store);
    return;
  }
  uint64_t* entry = way ? Touch(&core->l1, line, way) : Set(&core->l1, line);
  if (!is_store) return;
  if (!(*entry & kOwned) && core_count > 1) Snoop(core, line, true);
  *entry |= kDirty | kOwned;
}

// --- For the plugin --------------------------------------------------------------------------------------------------

bool CachesOpen(const char* text) {
  unsigned sets[2], ways[2], first;
  int length;
  while (sscanf(text, "%ux%u:%ux%u:%u%n", &sets[0], &ways[0], &sets[1], &ways[1], &first, &length) == 5) {
    int index = core_count++;
    if (index == kMaxCores || first > (unsigned)index || !sets[0] || !sets[1] || !ways[0] || !ways[1]) return false;
    if (!Open(&cores[index].l1, sets[0], ways[0])) return false;
    if (first == (unsigned)index && !Open(&shared[index], sets[1], ways[1])) return false;
    cores[index].l2 = &shared[first];
    text += length + (text[length] == '/');
  }
  return core_count && sscanf(text, "%ux%u", &sets[0], &ways[0]) == 2 && Open(&l3, sets[0], ways[0]);
}

void CachesClear(void) {
  for (int i = 0; i < core_count; ++i) {
    Clear(&cores[i].l1);
    if (cores[i].l2 == &shared[i]) Clear(&shared[i]);
    memset(cores[i].streams, 0, sizeof cores[i].streams);
    cores[i].newest = kEmpty;
  }
  Clear(&l3);
}

void CachesAccess(int core, uint64_t address, unsigned bytes, bool is_store) {
  uint64_t last = (address + bytes - 1) >> kLineShift;
  for (uint64_t line = address >> kLineShift; line <= last; ++line) AccessLine(&cores[core], line, is_store);
}

Traffic* CachesTraffic(int core) { return &cores[core].traffic; }
