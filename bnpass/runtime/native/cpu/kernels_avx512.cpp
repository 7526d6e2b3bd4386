// The kernels for AVX-512 (F, BW, DQ, VL).
#if defined(__x86_64__)

// Everything that others may share is included before the target is set, so that none of it is compiled for it.
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/instruction_sets.h"
#include "cpu/rounding.h"

// GCC 12 takes the undefined operands in its own AVX-512 headers for ours.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

#include "cpu/lanes_avx512.h"
#include "cpu/lanes_avx512_pairs.h"
// Behind the lanes.
#include "cpu/kernel_loops.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace bnpass::cpu {

const InstructionSet& avx512_instructions() {
  static constexpr InstructionSet set = instructions_of<Avx512>("avx512");
  return set;
}

const InstructionSet& avx512_pairs_instructions() {
  static constexpr InstructionSet set = instructions_of<Avx512Pairs, Avx512>("avx512-pairs");
  return set;
}

}  // namespace bnpass::cpu

#endif
