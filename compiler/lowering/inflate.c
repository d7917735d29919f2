// Decodes zlib streams (RFC 1950 and 1951) with nothing but the C library, for weights that pack-weights made smaller.
//
// Codes of up to kFast bits are looked up; the few longer ones are read bit by bit, as in zlib's contrib/puff. Streams
// are refused where zlib refuses them.

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { kFast = 10, kLongest = 15, kEnd = 256, kLiterals = 288, kLengths = 286, kDistances = 30 };

typedef struct {
  const uint8_t *next, *end;
  uint64_t bits;  // the next ones, lowest first; what is above `held` counts for nothing
  int held;
} Input;

typedef struct {
  uint8_t* target;
  size_t made, count, stride;
} Output;

// A canonical Huffman code: how many codes there are of each length, and the symbols in the order of their codes.
typedef struct {
  uint16_t fast[1 << kFast];  // by the next bits: symbol << 4 | length; 0 where the code is longer
  uint16_t count[kLongest + 1], symbols[kLiterals];
} Code;

// Hold at least 56 bits, or all that are left.
static inline void Refill(Input* in) {
  if (in->end - in->next >= 8) {
    uint64_t word;
    memcpy(&word, in->next, 8);  // x86-64 and AArch64 are little-endian
    in->bits |= word << in->held;
    in->next += (63 - in->held) >> 3;
    in->held |= 56;
  }
  while (in->held < 56 && in->next < in->end) {
    in->bits |= (uint64_t)*in->next++ << in->held;
    in->held += 8;
  }
}

static inline void Drop(Input* in, int count) {
  in->bits >>= count;
  in->held -= count;
}

// The next `count` bits, at most 16; -1 where the input ends before.
static inline int Take(Input* in, int count) {
  if (in->held < count) Refill(in);
  if (in->held < count) return -1;
  int value = (int)(in->bits & ((1u << count) - 1));
  Drop(in, count);
  return value;
}

// Go on at a whole byte, with nothing held.
static void Align(Input* in) {
  in->next -= in->held / 8;
  in->bits = 0;
  in->held = 0;
}

static int Reversed(int code, int length) {
  int reversed = 0;
  for (int i = 0; i < length; ++i) reversed |= (code >> i & 1) << (length - 1 - i);
  return reversed;
}

// False for lengths that are no prefix code. One that leaves bits unused is allowed where it is a single bit.
static bool Build(Code* code, const uint8_t* lengths, int symbols, bool may_be_single) {
  memset(code, 0, sizeof *code);
  for (int symbol = 0; symbol < symbols; ++symbol) code->count[lengths[symbol]]++;
  int unused = symbols - code->count[0], left = 1;
  bool is_single = may_be_single && unused == 1 && code->count[1] == 1;
  code->count[0] = 0;
  uint16_t starts[kLongest + 2] = {0};
  for (int length = 1; length <= kLongest; ++length) {
    left = 2 * left - code->count[length];
    if (left < 0) return false;
    starts[length + 1] = starts[length] + code->count[length];
  }
  for (int symbol = 0; symbol < symbols; ++symbol) {
    if (lengths[symbol]) code->symbols[starts[lengths[symbol]]++] = (uint16_t)symbol;
  }
  for (int length = 1, value = 0, index = 0; length <= kFast; ++length, value <<= 1) {
    for (int i = 0; i < code->count[length]; ++i, ++value, ++index) {
      for (int at = Reversed(value, length); at < 1 << kFast; at += 1 << length) {
        code->fast[at] = (uint16_t)(code->symbols[index] << 4 | length);
      }
    }
  }
  return left == 0 || unused == 0 || is_single;
}

// The next symbol; -1 where the input ends or holds no code. The caller has refilled the input.
static inline int Symbol(Input* in, const Code* code) {
  int entry = code->fast[in->bits & ((1 << kFast) - 1)], length = entry & 15;
  if (length > in->held) return -1;
  if (length) {
    Drop(in, length);
    return entry >> 4;
  }
  for (int value = 0, first = 0, index = 0; length++ < kLongest && length <= in->held;) {
    value = value << 1 | (int)(in->bits >> (length - 1) & 1);
    first <<= 1;
    if (value - first < code->count[length]) {
      Drop(in, length);
      return code->symbols[index + value - first];
    }
    index += code->count[length];
    first += code->count[length];
  }
  return -1;
}

static bool Match(Input* in, Output* out, const Code* distances, int symbol) {
  static const uint16_t kLength[] = {3,  4,  5,  6,  7,  8,  9,  10, 11,  13,  15,  17,  19,  23, 27,
                                     31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258};
  static const uint8_t kLengthBits[] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0};
  static const uint16_t kDistance[] = {1,   2,   3,   4,   5,   7,    9,    13,   17,   25,   33,   49,   65,    97,    129,
                                       193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577};
  int index = symbol - kEnd - 1;
  if (index >= (int)sizeof kLengthBits) return false;
  int more = Take(in, kLengthBits[index]);
  Refill(in);
  int place = Symbol(in, distances);
  if (more < 0 || place < 0 || place >= kDistances) return false;
  int further = Take(in, place < 4 ? 0 : place / 2 - 1);
  size_t length = kLength[index] + (size_t)more, distance = kDistance[place] + (size_t)further;
  if (further < 0 || distance > out->made || length > out->count - out->made) return false;
  for (; length; --length, ++out->made) {
    out->target[out->made * out->stride] = out->target[(out->made - distance) * out->stride];
  }
  return true;
}

static bool Coded(Input* in, Output* out, const Code* literals, const Code* distances) {
  for (;;) {
    if (in->held < kLongest) Refill(in);
    int symbol = Symbol(in, literals);
    if (symbol < 0) return false;
    if (symbol < kEnd) {
      if (out->made == out->count) return false;
      out->target[out->made++ * out->stride] = (uint8_t)symbol;
    } else if (symbol == kEnd) {
      return true;
    } else if (!Match(in, out, distances, symbol)) {
      return false;
    }
  }
}

static bool Stored(Input* in, Output* out) {
  Align(in);
  int length = Take(in, 16), check = Take(in, 16);
  if (length < 0 || check < 0 || length != (check ^ 0xFFFF)) return false;
  Align(in);
  if (in->end - in->next < length || out->count - out->made < (size_t)length) return false;
  for (int i = 0; i < length; ++i) out->target[out->made++ * out->stride] = *in->next++;
  return true;
}

static bool Fixed(Input* in, Output* out) {
  uint8_t lengths[kLiterals];
  Code literals, distances;
  for (int i = 0; i < kLiterals; ++i) lengths[i] = i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8;
  Build(&literals, lengths, kLiterals, false);
  memset(lengths, 5, 32);
  Build(&distances, lengths, 32, false);
  return Coded(in, out, &literals, &distances);
}

// The lengths of both codes, which are coded themselves: 0 to 15, or how often the one before or zero is repeated.
static bool Lengths(Input* in, const Code* code, uint8_t* lengths, int count) {
  for (int made = 0; made < count;) {
    Refill(in);
    int symbol = Symbol(in, code);
    if (symbol < 0 || (symbol == 16 && made == 0)) return false;
    if (symbol < 16) {
      lengths[made++] = (uint8_t)symbol;
      continue;
    }
    uint8_t length = symbol == 16 ? lengths[made - 1] : 0;
    int more = Take(in, symbol == 16 ? 2 : symbol == 17 ? 3 : 7), times = more + (symbol == 18 ? 11 : 3);
    if (more < 0 || times > count - made) return false;
    memset(lengths + made, length, (size_t)times);
    made += times;
  }
  return true;
}

static bool Dynamic(Input* in, Output* out) {
  static const uint8_t kOrder[] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
  int literals = Take(in, 5) + 257, distances = Take(in, 5) + 1, orders = Take(in, 4) + 4;
  if (literals < 257 || distances < 1 || orders < 4 || literals > kLengths || distances > kDistances) return false;
  uint8_t lengths[kLengths + kDistances] = {0};
  for (int i = 0; i < orders; ++i) {
    int length = Take(in, 3);
    if (length < 0) return false;
    lengths[kOrder[i]] = (uint8_t)length;
  }
  Code first, second;
  if (!Build(&first, lengths, sizeof kOrder, false)) return false;
  if (!Lengths(in, &first, lengths, literals + distances) || !lengths[kEnd]) return false;
  if (!Build(&first, lengths, literals, true) || !Build(&second, lengths + literals, distances, true)) return false;
  return Coded(in, out, &first, &second);
}

static uint32_t Adler32(const Output* out) {
  uint32_t a = 1, b = 0;
  for (size_t i = 0; i < out->count;) {
    size_t end = out->count - i < 5552 ? out->count : i + 5552;  // as many as fit into 32 bits
    for (; i < end; ++i) b += a += out->target[i * out->stride];
    a %= 65521;
    b %= 65521;
  }
  return b << 16 | a;
}

// Decodes the stream at `source` into `count` bytes, `stride` apart from `target` on. Returns where the stream ends, or
// NULL where it is damaged, cut off, or not as long. Whatever it holds, nothing else is read or written.
const uint8_t* nnc_inflate(const uint8_t* source, const uint8_t* end, uint8_t* target, size_t count, size_t stride) {
  Input in = {source, end, 0, 0};
  Output out = {target, 0, count, stride};
  int method = Take(&in, 8), flags = Take(&in, 8), is_last = 0;
  bool is_zlib = (method & 15) == 8 && method >> 4 <= 7 && !(flags & 32) && (method << 8 | flags) % 31 == 0;
  if (method < 0 || flags < 0 || !is_zlib) return NULL;
  while (!is_last) {
    is_last = Take(&in, 1);
    int kind = Take(&in, 2);
    bool done = is_last >= 0 && (kind == 0   ? Stored(&in, &out)
                                 : kind == 1 ? Fixed(&in, &out)
                                 : kind == 2 ? Dynamic(&in, &out)
                                             : false);
    if (!done) return NULL;
  }
  Align(&in);
  uint32_t sum = 0;
  for (int i = 0; i < 4; ++i) {
    int byte = Take(&in, 8);
    if (byte < 0) return NULL;
    sum = sum << 8 | (uint32_t)byte;
  }
  Align(&in);
  return out.made == count && sum == Adler32(&out) ? in.next : NULL;
}
