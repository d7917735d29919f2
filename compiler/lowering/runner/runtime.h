// What compiled libraries need of the program that runs them.

#ifndef RUNTIME_H
#define RUNTIME_H

#include "nnc.h"

// Loads the library at `path` and starts `threads` threads, or as many as it was compiled for where that is 0, but not
// more than there are cores. NULL after an error.
const NncNetwork* RuntimeLoad(const char* path, int threads);

// How many threads work.
int RuntimeThreads(void);

// What went wrong last.
const char* RuntimeError(void);

#endif
