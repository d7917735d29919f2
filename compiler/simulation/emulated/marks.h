// What the driver tells the plugin, through a system call that Linux does not have.

#ifndef MARKS_H
#define MARKS_H

enum { kMarkCall = 0x6e6e63 };  // "nnc"

enum Mark {
  kMarkClear,    // empty the caches
  kMarkObserve,  // value: 0 nothing, 1 caches, 2 caches and counts
  kMarkStep,     // value: the step that begins; kMarkNoStep between steps
  kMarkWorker,   // value: 0 where one core works alone, else 1 and the core, from here on
};

enum { kMarkNoStep = 0xffffffff };

#endif
