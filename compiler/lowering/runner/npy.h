// Arrays in files, as numpy.save writes them: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html

#ifndef NPY_H
#define NPY_H

#include <stddef.h>

#include "nnc.h"

// Stops the program with one line.
_Noreturn void Fail(const char* format, ...);

size_t Count(const NncTensor* tensor);  // of its elements
size_t Bytes(const NncTensor* tensor);

// 'input' float32 [1, 3, 224, 224]
const char* Described(const NncTensor* tensor);

// The values in a file, at a multiple of 128 bytes. Stops where it holds another type or shape than `tensor`.
void* NpyRead(const char* path, const NncTensor* tensor);
void NpyWrite(const char* path, const NncTensor* tensor, const void* values);

// Room for the values of a tensor, at a multiple of 128 bytes and with 128 more behind it, as a DSP wants it.
void* Allocate(const NncTensor* tensor);

#endif
