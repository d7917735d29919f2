#include "outputs.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "npy.h"

enum { kTop = 5, kMaxClasses = 100000 };

// --- Numbers ---------------------------------------------------------------------------------------------------------

static double Half(uint16_t bits) {
  int exponent = bits >> 10 & 31, fraction = bits & 1023;
  double size = exponent == 31   ? (fraction ? NAN : INFINITY)
                : exponent == 0 ? ldexp(fraction, -24)
                                : ldexp(1024 + fraction, exponent - 25);
  return bits >> 15 ? -size : size;
}

// Element `i` of an array of `type`.
static double Number(const char* type, const void* values, size_t i) {
  int bytes = atoi(type + 2);
  switch (type[1]) {
    case 'f':
      return bytes == 4   ? ((const float*)values)[i]
             : bytes == 8 ? ((const double*)values)[i]
                          : Half(((const uint16_t*)values)[i]);
    case 'i':
      return bytes == 1   ? ((const int8_t*)values)[i]
             : bytes == 2 ? ((const int16_t*)values)[i]
             : bytes == 4 ? ((const int32_t*)values)[i]
                          : (double)((const int64_t*)values)[i];
    default:
      return bytes == 1   ? ((const uint8_t*)values)[i]
             : bytes == 2 ? ((const uint16_t*)values)[i]
             : bytes == 4 ? ((const uint32_t*)values)[i]
                          : (double)((const uint64_t*)values)[i];
  }
}

// --- Tensors ---------------------------------------------------------------------------------------------------------

// Whether the array may be the scores of one sample: all of it along one axis.
static int IsVector(const NncTensor* tensor) {
  size_t count = Count(tensor);
  for (int axis = 0; axis < tensor->rank; ++axis) {
    if ((size_t)tensor->shape[axis] == count) return count > 1 && count <= kMaxClasses;
  }
  return 0;
}

static void ShowHighest(const NncTensor* tensor, const void* values) {
  size_t count = Count(tensor), chosen[kTop];
  for (size_t rank = 0; rank < kTop && rank < count; ++rank) {
    size_t best = count;
    for (size_t i = 0; i < count; ++i) {
      int is_taken = 0;
      for (size_t before = 0; before < rank; ++before) is_taken |= chosen[before] == i;
      double value = Number(tensor->type, values, i);
      if (!is_taken && (best == count || value > Number(tensor->type, values, best))) best = i;
    }
    chosen[rank] = best;
    printf("  %5zu  %.6g\n", best, Number(tensor->type, values, best));
  }
}

void Show(const NncTensor* tensor, const void* values) {
  double least = NAN, most = NAN;
  for (size_t i = 0; i < Count(tensor); ++i) {
    least = fmin(least, Number(tensor->type, values, i));
    most = fmax(most, Number(tensor->type, values, i));
  }
  printf("%s from %.6g to %.6g\n", Described(tensor), least, most);
  if (IsVector(tensor)) ShowHighest(tensor, values);
}

int Agrees(const NncTensor* tensor, const void* values, const void* expected, double tolerance) {
  double largest = 0, difference = 0;
  for (size_t i = 0; i < Count(tensor); ++i) {
    double wanted = Number(tensor->type, expected, i), found = Number(tensor->type, values, i);
    if (found == wanted || (isnan(found) && isnan(wanted))) {
      if (isfinite(wanted)) largest = fmax(largest, fabs(wanted));
      continue;
    }
    largest = fmax(largest, fabs(wanted));
    difference = fmax(difference, isnan(found - wanted) ? INFINITY : fabs(found - wanted));
  }
  int agrees = difference <= tolerance * largest;
  printf("%s: the largest difference is %.3g of %.3g, %s\n", Described(tensor), difference, largest,
         agrees ? "as expected" : "NOT as expected");
  return agrees;
}
