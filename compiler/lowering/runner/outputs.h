// What is told of the outputs.

#ifndef OUTPUTS_H
#define OUTPUTS_H

#include "nnc.h"

// Prints the range of the values, and the highest of what may be scores.
void Show(const NncTensor* tensor, const void* values);

// Whether no value is further from what is expected than `tolerance` of the largest one that is; prints how far they are.
int Agrees(const NncTensor* tensor, const void* values, const void* expected, double tolerance);

#endif
